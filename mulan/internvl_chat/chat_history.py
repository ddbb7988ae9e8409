"""A talk as JSON, in the form most chat programs share: [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]."""

from __future__ import annotations

import json
from collections.abc import Sequence

ROLES = ("user", "assistant")

Round = tuple[str, str]  # question, answer


def read_chat(text: str) -> list[Round]:
    """An empty text is no talk yet. Raises ValueError that says what is wrong, and where."""
    if not text.strip():
        return []
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {error}") from error
    if not isinstance(said, list):
        raise ValueError(f'expected is a list of {{"role", "content"}}, this is a {type(said).__name__}')
    for number, part in enumerate(said):
        if not isinstance(part, dict) or not isinstance(part.get("content"), str) or part.get("role") not in ROLES:
            raise ValueError(f'entry {number} must have "role" user or assistant, and a text as "content"')
        if part["role"] != ROLES[number % 2]:
            raise ValueError(
                f"entry {number} is the {part['role']}'s, expected is the {ROLES[number % 2]}'s: they take turns, the user begins"
            )
    if len(said) % 2:
        raise ValueError("the last question has no answer")
    return [(question["content"], answer["content"]) for question, answer in zip(said[::2], said[1::2])]


def write_chat(rounds: Sequence[Round]) -> str:
    return json.dumps(
        [{"role": role, "content": text} for pair in rounds for role, text in zip(ROLES, pair)], ensure_ascii=False
    )
