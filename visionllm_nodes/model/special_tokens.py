"""The tokens that VisionLLM v2 adds to its language model's vocabulary. Ids are the tokenizer's to know; here are names and counts.

Source: paper section 3 (super links); upstream's constant.py (26 names, in the order in which they were added).
"""

from __future__ import annotations

import re

IMAGE = "<image>"  # where a picture's patches go
PATCH = "<im_patch>"
REGION = "<region>"  # where a region's embedding goes

DETECT, GROUND, SEGMENT, POSE, GENERATE, EDIT = "[DET]", "[GRD]", "[SEG]", "[POSE]", "[GEN]", "[EDIT]"
TOOLS = (DETECT, GROUND, SEGMENT, POSE, GENERATE, EDIT)
EMBEDDINGS = ("[EMB]", "[EMB2]", "[EMB3]", "[EMB4]", "[EMB5]", "[EMB6]", "[EMB7]", "[EMB8]")

PERCEPTION_COUNT = 4  # embeddings behind a tool token: [EMB]..[EMB4]
PICTURE_COUNT = 64  # behind [GEN] and [EDIT]: [EMB] 64 times

ADDED = (
    "[PAD]",
    IMAGE,
    PATCH,
    REGION,
    "<img>",
    "</img>",
    "<reg>",
    "</reg>",
    "<det>",
    "</det>",
    "<grd>",
    "</grd>",
    *TOOLS,
    *EMBEDDINGS,
)
BASE = ("<s>", "</s>", "<unk>")  # the sentencepiece model's own

_LITERALS = re.compile("|".join(map(re.escape, (*ADDED, *BASE, "<|im_start|>", "<|im_end|>"))))


def count(tool: str) -> int:
    """How many embeddings follow this tool token."""
    return PICTURE_COUNT if tool in (GENERATE, EDIT) else PERCEPTION_COUNT


def slot(tool: str) -> str:
    """The tool token and its embeddings, as text: ``[DET][EMB][EMB2][EMB3][EMB4]``."""
    behind = EMBEDDINGS[0] * PICTURE_COUNT if tool in (GENERATE, EDIT) else "".join(EMBEDDINGS[:PERCEPTION_COUNT])
    return tool + behind


def region(name: str) -> str:
    """A region as the prompt bears it: ``<reg>region1<region></reg>``."""
    return f"<reg>{name}{REGION}</reg>"


def plain(text: str) -> str:
    """The text; raises ValueError where it holds one of the model's own tokens, which would no longer be words."""
    found = _LITERALS.search(text)
    if found:
        raise ValueError(f"the text {text[:80]!r} holds {found[0]!r}, one of the model's own tokens")
    return text
