"""The tokens that VisionLLM v2 adds to its language model's vocabulary: their names and counts.

The tokenizer has their ids.

Source: paper section 3 (super links); upstream's constant.py (26 names, in the order in which they were added).
"""

from __future__ import annotations

import re

IMAGE = "<image>"  # where an image's patches go
PATCH = "<im_patch>"
REGION = "<region>"  # where a region's embedding goes

DETECT, GROUND, SEGMENT, POSE, GENERATE, EDIT = "[DET]", "[GRD]", "[SEG]", "[POSE]", "[GEN]", "[EDIT]"
TOOLS = (DETECT, GROUND, SEGMENT, POSE, GENERATE, EDIT)
EMBEDDINGS = ("[EMB]", "[EMB2]", "[EMB3]", "[EMB4]", "[EMB5]", "[EMB6]", "[EMB7]", "[EMB8]")

PERCEPTION_COUNT = 4  # embeddings behind a tool token: [EMB]..[EMB4]
DIFFUSION_COUNT = 64  # behind [GEN] and [EDIT]: [EMB] 64 times

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
    """Return how many embeddings follow this tool token."""
    return DIFFUSION_COUNT if tool in (GENERATE, EDIT) else PERCEPTION_COUNT


def tool_text(tool: str) -> str:
    """Return the tool token and its embeddings as text: ``[DET][EMB][EMB2][EMB3][EMB4]``."""
    behind = EMBEDDINGS[0] * DIFFUSION_COUNT if tool in (GENERATE, EDIT) else "".join(EMBEDDINGS[:PERCEPTION_COUNT])
    return tool + behind


def region(name: str) -> str:
    """Return a region as it stands in a prompt: ``<reg>region1<region></reg>``."""
    return f"<reg>{name}{REGION}</reg>"


def refuse_special_tokens(text: str) -> str:
    """Return the text. Raises ValueError where it contains one of the model's own tokens, which would not be words."""
    match = _LITERALS.search(text)
    if match:
        raise ValueError(f"the text {text[:80]!r} contains {match[0]!r}, one of the model's own tokens")
    return text
