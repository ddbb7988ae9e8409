"""A small InternVL 3.5 Flash without a file, and upstream's numbers for it.

`published(folder, facts)` needs numpy and safetensors alone, so tests fill the same weights. Run as a program in an
environment that has torch, transformers, timm and Pillow, with the Python files of a published folder, such as those
of OpenGVLab/InternVL3_5-8B-Flash (modeling_internvl_chat.py and what it imports):

    python tests/parity/internvl_flash_recipe.py path/to/InternVL3_5-8B-Flash tests/parity/goldens

It writes internvl_chat/flash.json (sizes, weights' shapes, and of each case its prompt, which tiles are compressed, the
answer) and internvl_chat/flash.safetensors (scores, encoded tiles, what the language model reads). The tokenizer is
internvl_chat/tokenizer.json, which is there already. Tiles have 32 x 32 patches, for which upstream's code has numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SEED = 35
TILE, PATCH = 64, 2
MEAN, STD = (np.asarray(each, np.float32) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
WRITTEN = 24  # tokens
KEPT = 4  # channels of what the language model reads
THRESHOLDS = {"flash_relative_threshold": 0.3, "flash_absolute_threshold": 0.1}
VISION = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=TILE,
    patch_size=PATCH,
    norm_type="layer_norm",
    qk_normalization=False,
    qkv_bias=True,
    layer_norm_eps=1e-6,
    use_flash_attn=False,
    drop_path_rate=0.0,
)
LANGUAGE = dict(
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    vocab_size=416,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=8192,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=False,
    attention_bias=False,
)
# name -> question, pictures (height, width in tiles each), frames, history, thresholds that differ
CASES = {
    "one tile": ("What is in the picture?", [(1, 1)], 0, [], {}),
    "tiles": ("它是什么?", [(1, 3)], 0, [], {}),
    "pictures": ("Where is the blue square?", [(1, 2), (1, 1), (2, 2)], 0, [], {}),
    "frames": ("Où est le chat ?", [], 6, [], {}),
    "history": ("Why?", [(2, 1)], 0, [("What is it?", "The red circle.")], {}),
    "all that may": (
        "What is it?",
        [(2, 2)],
        0,
        [],
        {"flash_relative_threshold": 0.0, "flash_absolute_threshold": 0.0},
    ),
    "none": ("What is it?", [(2, 2)], 0, [], {"flash_relative_threshold": 1.0, "flash_absolute_threshold": 0.0}),
}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32, from the frozen legacy stream of RandomState, seeded by the first four bytes of sha256("35:name")."""
    digest = hashlib.sha256(f"{SEED}:{name}".encode()).digest()
    drawn = np.random.RandomState(int.from_bytes(digest[:4], "little")).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last in ("ls1", "ls2"):
        offset, scale = 0.5, 0.1
    elif last in ("class_embedding", "position_embedding", "query_token"):
        offset, scale = 0.0, 1.0
    elif "embed_tokens" in name:
        offset, scale = 0.0, 0.3
    elif last == "weight" and name.rsplit(".", 2)[-2] in ("q_norm", "k_norm"):
        offset, scale = 3.0, 0.1  # so that tokens attend to few others
    elif len(shape) == 1:
        offset, scale = (1.0, 0.1) if last == "weight" else (0.0, 0.2)
    else:
        offset, scale = 0.0, 2.0 * float(np.prod(shape[1:])) ** -0.5
    return np.asarray(offset + scale * drawn, dtype=np.float32)


def picture(case: str, number: int, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: stripes and noise, of another strength in each tile, so that scores differ."""
    noise = tensor(f"{case} {number}", (height, width, 3))
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    strength = 1 + (across // TILE + 2 * (down // TILE) + number) % 4
    stripes = np.stack((np.sin(down * strength / 7), np.cos(across / strength), np.sin((down + across) / 9)), axis=2)
    return np.clip(127 + 30 * strength[..., None] * stripes + 25 * noise, 0, 255).astype(np.uint8)


def pictures(case: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The images and the frames of a case."""
    _, sizes, frames, _, _ = CASES[case]
    images = [picture(case, number, TILE * rows, TILE * columns) for number, (rows, columns) in enumerate(sizes)]
    return images, [picture(case, 10 + number, TILE, TILE) for number in range(frames)]


def config(thresholds: dict) -> dict:
    """config.json as the published folder has it."""
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
        "flash_mode": True,
        **THRESHOLDS,
        **thresholds,
        "vision_config": VISION,
        "llm_config": LANGUAGE,
    }


def published(folder: Path, facts: dict, thresholds: dict) -> Path:
    """Write the checkpoint that the goldens are of, without its tokenizer."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor(name, tuple(shape)) for name, shape in facts["weights"].items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(thresholds)), "utf-8")
    return folder


def normalized(image) -> np.ndarray:
    return ((np.asarray(image, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def tiles(image: np.ndarray) -> np.ndarray:
    """The tiles of an image that is a whole number of them, and behind several a thumbnail."""
    from PIL import Image

    whole = Image.fromarray(image)
    boxes = [(x, y, x + TILE, y + TILE) for y in range(0, whole.height, TILE) for x in range(0, whole.width, TILE)]
    parts = [whole.crop(box) for box in boxes]
    if len(parts) > 1:
        parts.append(whole.resize((TILE, TILE)))
    return np.stack([normalized(part) for part in parts])


def make(code: Path, goldens: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    package = ModuleType("flash")
    package.__path__ = [str(code)]
    sys.modules["flash"] = package
    flash: Any = importlib.import_module("flash.modeling_internvl_chat")
    model = flash.InternVLChatModel(flash.InternVLChatConfig(**config({})), use_flash_attn=False).eval()
    weights = {name: tuple(value.shape) for name, value in model.state_dict().items() if "inv_freq" not in name}
    model.load_state_dict({name: torch.from_numpy(tensor(name, shape)) for name, shape in weights.items()})
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(goldens / "internvl_chat" / "tokenizer.json"))
    stored, cases = {}, {}
    for name, (question, _, _, history, thresholds) in CASES.items():
        for threshold, value in {**THRESHOLDS, **thresholds}.items():
            setattr(model, threshold, value)
        seen = watch(model)
        images, frames = pictures(name)
        split = [tiles(image) for image in images] + [normalized(frame)[None] for frame in frames]
        places = [f"Image-{n}: <image>\n" for n in range(1, len(images) + 1)] if len(images) > 1 else ["<image>\n"]
        if frames:
            places = [f"Frame{n}: <image>\n" for n in range(1, len(frames) + 1)]
        asked = [[said, reply] for said, reply in history]
        if history:
            asked[0][0] = "".join(places) + asked[0][0]
        answer = model.chat(
            tokenizer,
            torch.from_numpy(np.concatenate(split)),
            question if history else "".join(places) + question,
            dict(max_new_tokens=WRITTEN, do_sample=False),
            history=[tuple(each) for each in asked] or None,
            num_patches_list=[len(each) for each in split],
        )
        scores = seen["gate"][:, 0]
        stored[f"{name}.ids"] = torch.tensor(seen["ids"], dtype=torch.int32)
        stored[f"{name}.scores"] = scores
        stored[f"{name}.read"] = seen["read"][0, :, :KEPT].clone()
        cases[name] = {
            "compressed": [bool(each) for each in seen["compressed"]],
            "tiles": [len(each) for each in split],
            "answer_ids": seen["written"],
            "answer": answer,
        }
        if name == "one tile":
            stored["64"], stored["256"] = seen["64"], seen["256"]
        print(name, len(seen["read"][0]), cases[name]["compressed"], scores.tolist(), answer)
    facts = {
        "upstream": "OpenGVLab/InternVL3_5-8B-Flash, modeling_internvl_chat.py, float32 on the CPU",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "recipe": Path(__file__).name,
        "weights": weights,
        "cases": cases,
    }
    save_file(
        {key: value.contiguous() for key, value in stored.items()}, goldens / "internvl_chat" / "flash.safetensors"
    )
    (goldens / "internvl_chat" / "flash.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), "utf-8")


def watch(model) -> dict:
    """Return what fills with the parts of the next answer that upstream's `chat` keeps to itself."""
    seen = {}
    kind = type(model)

    def extract(*arguments):
        seen["64"], seen["256"], seen["gate"] = kind.extract_feature_flash(model, *arguments)
        return seen["64"], seen["256"], seen["gate"]

    def compress(**arguments):
        seen["compressed"] = arguments["gate_result"]
        seen["ids"] = arguments["input_ids"].tolist()
        return kind.compress_visual_tokens_in_sentence(model, **arguments)

    def generate(**arguments):
        seen["read"] = arguments["inputs_embeds"]
        written = type(model.language_model).generate(model.language_model, **arguments)
        seen["written"] = written[0].tolist()
        return written

    model.extract_feature_flash, model.compress_visual_tokens_in_sentence = extract, compress
    model.language_model.generate = generate
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("code", type=Path, help="a folder with the published Python files")
    parser.add_argument("goldens", type=Path, help="a folder with internvl_chat/tokenizer.json, which is written into")
    given = parser.parse_args()
    make(given.code, given.goldens)
