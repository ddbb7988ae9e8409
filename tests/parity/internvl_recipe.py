"""Small InternVL weights without a file, and upstream's numbers for them.

`tensor(seed, name, shape)` needs numpy alone, so tests fill the same weights. Run as a program in an environment that
has mulankit 1.0.2 and torch:

    python tests/parity/internvl_recipe.py tests/parity/goldens

It writes internvl/<case>.json (sizes, weights' shapes, texts, ids) and internvl/<case>.safetensors (pictures, states,
embeddings, logits). Pillow must be older than 12: it squeezes pictures across and then down, and later ones choose the
order. Upstream's code has two numbers of the published model in it that no configuration changes: LlamaCrossAttention
is made for pictures 3200 wide, and LlamaDecoderLayer reads pictures only where there are 96 query tokens. Here those
layers are made anew for the case's width, and the 96 is set to the case's number, before weights are filled in; the
code that computes is upstream's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np

CASES = {
    "one": dict(
        seed=11,
        width=48,
        feed_forward=80,
        layers=3,
        heads=3,
        patch=4,
        picture=16,
        qkv_bias=False,
        text_width=64,
        text_feed_forward=96,
        text_layers=3,
        text_heads=4,
        norm_eps=1e-6,
        queries=6,
        embedding=24,
        pool_heads=4,
        every=2,
    ),
    "two": dict(
        seed=12,
        width=80,
        feed_forward=128,
        layers=2,
        heads=5,
        patch=7,
        picture=21,
        qkv_bias=False,
        text_width=48,
        text_feed_forward=80,
        text_layers=5,
        text_heads=3,
        norm_eps=1e-5,
        queries=96,
        embedding=32,
        pool_heads=8,
        every=3,
    ),
}
TEXTS = (
    "a photo of a red circle",
    "",
    "чёрная собака на снегу",
    "一只猫坐在窗台上",
    "a <unk> blue square <unk>",
    "1girl [PAD] and </s> more",
    " ".join(f"word {number} of a text that does not fit" for number in range(20)),
)
PICTURES = 3  # that are embedded: of the tower's size, so that no resize stands between them and what is compared
OTHER_SIZES = (
    (40, 29),
    (16, 16),
    (23, 61),
    (90, 11),
    (12, 50),
    (75, 110),
)  # height, width of pictures for upstream's transforms
TOKENIZER = "mulan/tokenizer"  # below the goldens' folder


def tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32, from the frozen legacy stream of RandomState, seeded by the first four bytes of
    sha256(f"{seed}:{name}").
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    drawn = np.random.RandomState(int.from_bytes(digest[:4], "little")).standard_normal(tuple(shape))
    offset, scale = rule(name, tuple(shape))
    return np.asarray(offset + scale * drawn, dtype=np.float32)


def rule(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation: of an order that lets every part of the model be seen in what comes out."""
    last = name.rsplit(".", 1)[-1]
    if name == "logit_scale":
        return 3.0, 0.2
    if last in ("ls1", "ls2"):
        return 0.5, 0.1
    if name.endswith("embed_tokens.weight"):
        return 0.0, 0.05
    if last in ("query_tokens", "class_embedding", "position_embedding"):
        return 0.0, 0.5
    if last == "text_projection":
        return 0.0, shape[0] ** -0.5
    if len(shape) == 1:
        return (1.0, 0.1) if last == "weight" else (0.0, 0.1)
    return 0.0, float(np.prod(shape[1:])) ** -0.5


def shapes(sizes: dict, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published folder at these sizes."""
    w, text, e = sizes["width"], sizes["text_width"], sizes["embedding"]
    found = {
        "query_tokens": (1, sizes["queries"], text),
        "text_projection": (text, e),
        "logit_scale": (),
        "itm_head.weight": (2, text),
        "itm_head.bias": (2,),
        "vision_model.embeddings.class_embedding": (1, 1, w),
        "vision_model.embeddings.position_embedding": (1, 1 + (sizes["picture"] // sizes["patch"]) ** 2, w),
        "vision_model.embeddings.patch_embedding.weight": (w, 3, sizes["patch"], sizes["patch"]),
        "vision_model.embeddings.patch_embedding.bias": (w,),
    }
    for layer in range(sizes["layers"]):
        found |= {
            f"vision_model.encoder.layers.{layer}.{name}": shape
            for name, shape in {
                "ls1": (w,),
                "ls2": (w,),
                "norm1.weight": (w,),
                "norm2.weight": (w,),
                "attn.q_norm.weight": (w,),
                "attn.k_norm.weight": (w,),
                "attn.qkv.weight": (3 * w, w),
                "attn.proj.weight": (w, w),
                "attn.proj.bias": (w,),
                "mlp.fc1.weight": (sizes["feed_forward"], w),
                "mlp.fc1.bias": (sizes["feed_forward"],),
                "mlp.fc2.weight": (w, sizes["feed_forward"]),
                "mlp.fc2.bias": (w,),
            }.items()
        }
    for prefix, width in (("clip_projector.", w), ("clip_projector2.", text)):
        found |= {f"{prefix}norm1_{part}.{kind}": (width,) for part in "qkv" for kind in ("weight", "bias")}
        found |= {f"{prefix}cross_attn.{part}_bias": (width,) for part in "qkv"}
        found |= {f"{prefix}cross_attn.{part}.weight": (width, width) for part in "qkv"}
        found |= {f"{prefix}cross_attn.proj.weight": (e, width), f"{prefix}cross_attn.proj.bias": (e,)}
    found |= {f"qllama.{name}.weight": (vocabulary, text) for name in ("model.embed_tokens", "lm_head")} | {
        "qllama.model.norm.weight": (text,)
    }
    for layer in range(sizes["text_layers"]):
        names = {f"self_attn.{part}_proj.weight": (text, text) for part in "qkvo"}
        names |= {f"mlp.{part}_proj.weight": (sizes["text_feed_forward"], text) for part in ("gate", "up")}
        names |= {"mlp.down_proj.weight": (text, sizes["text_feed_forward"])}
        names |= {f"{norm}_layernorm.weight": (text,) for norm in ("input", "post_attention")}
        if layer % sizes["every"] == 0:
            names |= {f"cross_attn.{part}_proj.weight": (text, text if part in "qo" else w) for part in "qkvo"}
            names |= {"cross_attn.norm1.weight": (text,), "cross_attn.norm2.weight": (w,)}
        found |= {f"qllama.model.layers.{layer}.{name}": shape for name, shape in names.items()}
    return found


def configuration(sizes: dict, vocabulary: int) -> dict:
    """config.json as the published folder has it."""
    return {
        "model_type": "internvl",
        "architectures": ["InternVLModel"],
        "clip_embed_dim": sizes["embedding"],
        "attn_pool_num_heads": sizes["pool_heads"],
        "num_query_token": sizes["queries"],
        "cross_attention_frequency": sizes["every"],
        "use_backbone_lora": 0,
        "use_qllama_lora": 0,
        "vision_config": {
            "hidden_size": sizes["width"],
            "intermediate_size": sizes["feed_forward"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "patch_size": sizes["patch"],
            "image_size": sizes["picture"],
            "qk_normalization": True,
            "qkv_bias": False,
            "use_flash_attn": False,
            "drop_path_rate": 0.0,
        },
        "qllama_config": {
            "vocab_size": vocabulary,
            "hidden_size": sizes["text_width"],
            "intermediate_size": sizes["text_feed_forward"],
            "num_hidden_layers": sizes["text_layers"],
            "num_attention_heads": sizes["text_heads"],
            "rms_norm_eps": sizes["norm_eps"],
            "max_position_embeddings": 256,
            "hidden_act": "silu",
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    }


def picture(seed: int, number: int, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: a smooth part, so that resizing has something to do, and noise."""
    noise = tensor(seed, f"picture {number}", (height, width, 3))
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    smooth = np.stack((np.sin(down / 5 + number), np.cos(across / 7), np.sin((down + across) / 9)), axis=2)
    return np.clip(127 + 70 * smooth + 25 * noise, 0, 255).astype(np.uint8)


def upstream(sizes: dict, vocabulary: int):
    """mulankit's InternVLModel with the case's weights."""
    import torch
    from mulankit.internvl.configuration_internvl import InternVLConfig
    from mulankit.internvl.modeling_internvl import InternVLModel
    from mulankit.internvl.modeling_qllama import LlamaRMSNorm

    model = InternVLModel(InternVLConfig(**configuration(sizes, vocabulary)))
    for layer in model.qllama.model.layers:
        layer.num_query_token = sizes["queries"]
        if layer.cross_attn is not None:
            layer.cross_attn.k_proj, layer.cross_attn.v_proj = (
                torch.nn.Linear(sizes["width"], sizes["text_width"], bias=False) for _ in range(2)
            )
            layer.cross_attn.norm2 = LlamaRMSNorm(sizes["width"], eps=sizes["norm_eps"])
    own, ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}, shapes(sizes, vocabulary)
    assert own == ours, sorted(own.items() ^ ours.items())
    model.load_state_dict({name: torch.from_numpy(tensor(sizes["seed"], name, shape)) for name, shape in ours.items()})
    return model.train(False)


def make(name: str, goldens: Path) -> None:
    import torch
    from mulankit.internvl import InternVLTokenizer, build_transform
    from PIL import Image
    from safetensors.torch import save_file

    sizes = CASES[name]
    tokenizer = InternVLTokenizer(str(goldens / TOKENIZER))
    vocabulary = tokenizer.tokenizer.sp_model.get_piece_size()
    model = upstream(sizes, vocabulary)
    ids = tokenizer(list(TEXTS))
    size, seed = sizes["picture"], sizes["seed"]
    pictures = [picture(seed, number, size, size) for number in range(PICTURES)]
    others = [picture(seed, PICTURES + number, *sides) for number, sides in enumerate(OTHER_SIZES)]
    found = {f"picture.{number}": torch.from_numpy(image) for number, image in enumerate(pictures)}
    found |= {f"other.{number}": torch.from_numpy(image) for number, image in enumerate(others)}
    for framing, task in (("crop", "classification"), ("whole", "retrieval")):
        transform = build_transform(task, size)
        found[f"other.{framing}"] = torch.stack([transform(Image.fromarray(image)) for image in others])
    with torch.no_grad():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in pictures])
        states, read = model.get_image_features(pixels, return_dict=True)
        found |= {
            "pixels": pixels,
            "states": states,
            "pooled": model.clip_projector(states),
            "read": read,
            "read.pooled": model.clip_projector2(read),
            "text.states": model.get_text_features(ids, ids > 0, return_dict=True),
            "text.projected": model.encode_text(ids),
        }
        for mode in "CG":
            found[f"{mode}.image"] = model.encode_image(pixels, f"InternVL-{mode}")
            found[f"{mode}.logits"] = model(pixels, ids, f"InternVL-{mode}")[0]
    save_file({key: value.contiguous() for key, value in found.items()}, goldens / "internvl" / f"{name}.safetensors")
    facts = {
        "upstream": "mulankit 1.0.2 from PyPI, mulankit.internvl, float32 on the CPU",
        "torch": torch.__version__,
        "recipe": Path(__file__).name,
        "seed": sizes["seed"],
        "sizes": sizes,
        "config": configuration(sizes, vocabulary),
        "weights": shapes(sizes, vocabulary),
        "tokenizer": f"../{TOKENIZER}/tokenizer.model",
        "texts": TEXTS,
        "ids": ids.tolist(),
    }
    (goldens / "internvl" / f"{name}.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "goldens", type=Path, help="a folder with the tiny tokenizer in mulan/tokenizer; internvl/ is written into it"
    )
    given = parser.parse_args().goldens
    (given / "internvl").mkdir(exist_ok=True)
    for case in CASES:
        make(case, given)
