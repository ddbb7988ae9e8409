"""Make the tiny models anew, from nothing."""

import argparse
from pathlib import Path


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ..comfyui import OUTPUT, open_comfyui

    open_comfyui("--cpu")
    from ..emoji_world import training as emoji_training
    from ..tinyworld import chat_training, contrastive_training, training
    from ..tinyworld_visionllm import training as visionllm_training

    print(training.ESTIMATE)
    texts = OUTPUT / "tiny_text_encoder"
    training.main(OUTPUT / "tiny_world", texts)
    print(emoji_training.ESTIMATE)
    emoji_training.main(OUTPUT / "emoji_world", texts)
    print(contrastive_training.ESTIMATE)
    print(f"the pack: {contrastive_training.train_internvl(OUTPUT / 'tiny_internvl')}")
    print(chat_training.ESTIMATE)
    print(f"the pack: {chat_training.train_chat(OUTPUT / 'tiny_internvl_chat')}")
    print(visionllm_training.ESTIMATE)
    print(f"the pack: {visionllm_training.train(OUTPUT / 'tiny_visionllm')}")
    return 0
