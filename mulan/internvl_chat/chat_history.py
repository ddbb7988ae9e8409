"""A dialogue as JSON, in the form most chat programs share: [{"role": "user", "content": "..."}, {"role": "assistant",
"content": "..."}, ...].
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..boundary.files import parse_json

ROLES = ("user", "assistant")

Exchange = tuple[str, str]  # question, answer


def parse_history(text: str) -> list[Exchange]:
    """Read a dialogue; an empty text is one without exchanges. Raises ValueError that says what is wrong, and where."""
    if not text.strip():
        return []
    try:
        turns = parse_json(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(turns, list):
        raise ValueError(f'expected a list of {{"role", "content"}}, not a {type(turns).__name__}')
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or turn.get("role") not in ROLES:
            raise ValueError(f'entry {index} must have "role" user or assistant, and a text as "content"')
        if turn["role"] != ROLES[index % 2]:
            raise ValueError(
                f"entry {index} is the {turn['role']}'s, expected the {ROLES[index % 2]}'s: they take turns, the user "
                "begins"
            )
    if len(turns) % 2:
        raise ValueError("the last question has no answer")
    return [(question["content"], answer["content"]) for question, answer in zip(turns[::2], turns[1::2], strict=True)]


def history_to_json(exchanges: Sequence[Exchange]) -> str:
    """Write a dialogue, as `parse_history` reads it."""
    turns = [
        {"role": role, "content": text} for exchange in exchanges for role, text in zip(ROLES, exchange, strict=True)
    ]
    return json.dumps(turns, ensure_ascii=False)
