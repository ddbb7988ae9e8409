"""The graphs of a soak: templates of the tiny models, each a little different every time."""

from __future__ import annotations

import copy
import random

from .. import graphs

QUICK = (
    "internvl_label_folder",
    "internvl_retrieval_grid",
    "internvl_chat",
    "mulan_combine",
    "mulan_image_to_image",
    "mulan_load_conditioning",
    "mulan_lora",
    "mulan_perp_neg",
    "mulan_prompt_inspector",
    "mulan_regional",
    "mulan_save_conditioning",
    "mulan_scheduled",
    "mulan_text_to_image",
    "visionllm_batch_to_json",
    "visionllm_boxes",
    "visionllm_count",
    "visionllm_describe",
    "visionllm_detect",
    "visionllm_find_and_inpaint",
    "visionllm_instruct",
    "visionllm_keypoints",
    "visionllm_languages",
    "visionllm_region",
    "visionllm_segment",
)
TEXTS = ("text", "prompt", "question", "sentence", "query")
CHOICES = ("VisionLLMRegion",)  # whose `question` is one of a few
SEEDS = ("seed", "noise_seed")
STEPS = 2  # of a sampler


def mixed(dice: random.Random) -> tuple[str, dict]:
    """Return a template's name and the template, with other seeds and texts and fewer steps."""
    name = dice.choice(QUICK)
    graph = copy.deepcopy(graphs.load(name))
    for node in graph.values():
        inputs = node["inputs"]
        for key, value in inputs.items():
            if key in SEEDS and isinstance(value, int):
                inputs[key] = dice.randrange(10**6)
            elif (
                key in TEXTS
                and node["class_type"] not in CHOICES
                and isinstance(value, str)
                and value
                and dice.random() < 0.7
            ):
                inputs[key] = f"{value} {dice.randrange(1000)}"
            elif key == "steps" and isinstance(value, int):
                inputs[key] = min(value, STEPS)
    return name, graph
