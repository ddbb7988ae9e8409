"""InternVL dialogue models with random weights, as published: transformers' own class and folder, and OpenGVLab's, with
real tokenizers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..sentencepiece_training import train_bpe

LANGUAGES = ("qwen2", "qwen3", "internlm2")
TILE, PATCH = 28, 7  # pixels
TOKENS = (TILE // PATCH // 2) ** 2  # of a tile
PIECES = 400
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = (
    "system user assistant What is in the picture? The red circle is left of the blue square. Image-1: Image-2: "
    "Frame1: Frame2: "
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。 "
    "Où est le chat ? It's 12 o'clock, don't you see? "
)


# --- tokenizers ---


def qwen_tokenizer() -> Tokenizer:
    """A byte-level BPE of exactly `PIECES` pieces with Qwen2's rules; `SPECIAL` follow."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [WORDS] * 4,
        trainers.BpeTrainer(
            vocab_size=PIECES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    assert tokenizer.get_vocab_size() == PIECES
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def write_qwen_tokenizer(folder: Path, as_json: bool) -> None:
    """tokenizer.json, as transformers saves it; or vocab.json and merges.txt with the added tokens beside them, as
    OpenGVLab does.
    """
    tokenizer = qwen_tokenizer()
    added = {
        str(PIECES + number): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for number, name in enumerate(SPECIAL)
    }
    told = {
        "add_bos_token": False,
        "added_tokens_decoder": added,
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    if as_json:
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        model = json.loads(tokenizer.to_str())["model"]
        _write(folder / "vocab.json", model["vocab"])
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", "utf-8")
        _write(folder / "added_tokens.json", {name: PIECES + number for number, name in enumerate(SPECIAL)})
    _write(folder / "tokenizer_config.json", told)


def write_internlm2_tokenizer(folder: Path) -> None:
    """tokenizer.model without a leading space, and the added tokens beside it; `SPECIAL` but for Qwen's end follow its
    pieces.
    """
    model = train_bpe([WORDS] * 10, PIECES, add_dummy_prefix=False)
    (folder / "tokenizer.model").write_bytes(model)
    names = ("<unk>", "<s>", "</s>")
    added = {number: name for number, name in enumerate(names)} | {
        PIECES + number: name for number, name in enumerate(SPECIAL[1:])
    }
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(id): {"content": name, "special": True} for id, name in added.items()},
            "tokenizer_class": "InternLM2Tokenizer",
        },
    )


# --- models ---


def model(language: str = "qwen2", tied: bool = False):
    """transformers' InternVLForConditionalGeneration; InternLM2 is a LLaMA to it."""
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        LlamaConfig,
        Qwen2Config,
        Qwen3Config,
    )

    vision = InternVLVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        attention_bias=True,
        image_size=(TILE, TILE),
        patch_size=(PATCH, PATCH),
    )
    sizes: dict[str, Any] = dict(
        vocab_size=PIECES + len(SPECIAL) + 3,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        rope_theta=1e6,
    )
    dynamic: dict[str, Any] = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    told = {
        "qwen2": lambda: Qwen2Config(**sizes),
        "qwen3": lambda: Qwen3Config(head_dim=16, **sizes),
        "internlm2": lambda: LlamaConfig(rms_norm_eps=1e-5, **sizes, **dynamic),
    }[language]()
    config = InternVLConfig(
        vision_config=vision,
        text_config=told,
        image_token_id=folder_words(language)["<IMG_CONTEXT>"],
        image_seq_length=TOKENS,
        tie_word_embeddings=tied,
    )
    config._attn_implementation = "eager"
    made = InternVLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = 1.0 if "embed" in name else 0.2 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
            tensor.copy_(around + torch.randn(tensor.shape, generator=generator) * spread)
        if not tied:
            made.lm_head.weight[PIECES:] = 0.0  # it writes words, and does not end of itself
    return made


def checkpoint(
    folder: Path, language: str = "qwen2", layout: str = "opengvlab", tied: bool = False, writes: str | None = None
) -> Path:
    """A published folder: `layout` is "opengvlab" or "hf". `writes`: an added token that it answers everything with,
    again and again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = model(language, tied)
    if writes is not None:
        make_write(made, folder_words(language)[writes])
    save(made, folder, language, layout)
    return folder


def save(made, folder: Path, language: str, layout: str) -> None:
    made.save_pretrained(folder)
    if layout == "opengvlab":
        tensors, told = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text("utf-8"))
        save_file(
            to_opengvlab(tensors, told["text_config"] if language == "internlm2" else None),
            folder / "model.safetensors",
        )
        _write(folder / "config.json", opengvlab_config(told, language))
    if language == "internlm2":
        write_internlm2_tokenizer(folder)
    else:
        write_qwen_tokenizer(folder, as_json=layout == "hf")


def to_opengvlab(tensors: dict[str, torch.Tensor], packed: dict | None = None) -> dict[str, torch.Tensor]:
    """transformers' saved names -> OpenGVLab's; `packed`: the text config of a LLaMA that becomes an InternLM2."""

    def renamed(name: str) -> str:
        for pattern, instead in (
            (r"^vision_tower\.", "vision_model."),
            (r"encoder\.layer\.", "encoder.layers."),
            ("cls_token", "class_embedding"),
            ("position_embeddings", "position_embedding"),
            (r"patch_embeddings\.projection", "patch_embedding"),
            (r"lambda_(\d)", r"ls\1"),
            (r"attention\.projection_layer", "attn.proj"),
            (r"attention\.([qk])_norm", r"attn.\1_norm"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            (r"^multi_modal_projector\.layer_norm", "mlp1.0"),
            (r"^multi_modal_projector\.linear_1", "mlp1.1"),
            (r"^multi_modal_projector\.linear_2", "mlp1.3"),
        ):
            name = re.sub(pattern, instead, name)
        return name

    out = {
        renamed(name): tensor
        for name, tensor in tensors.items()
        if not re.search(r"vision_tower.*attention\.[qkv]_proj", name)
    }
    for name in [name for name in tensors if re.search(r"vision_tower.*attention\.q_proj", name)]:
        parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
        out[renamed(name).replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return _packed(out, packed["num_key_value_heads"], packed["head_dim"]) if packed else out


def _packed(tensors: dict[str, torch.Tensor], groups: int, head: int) -> dict[str, torch.Tensor]:
    """LLaMA's names -> InternLM2's: each group of heads has its queries, its key and its value one behind the other."""
    names = {
        "embed_tokens": "tok_embeddings",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "lm_head": "output",
    }
    out = {}
    for name, tensor in tensors.items():
        if name.endswith("self_attn.q_proj.weight"):
            q, k, v = (tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv")
            rows = [
                row
                for group in range(groups)
                for row in (q.chunk(groups)[group], k[group * head :][:head], v[group * head :][:head])
            ]
            out[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(rows)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for part, instead in names.items():
                name = name.replace(part, instead) if name.startswith("language_model.") else name
            out[name] = tensor
    return out


def opengvlab_config(told: dict, language: str) -> dict:
    """config.json as OpenGVLab writes it: the same facts under other names."""
    vision, text = told["vision_config"], dict(told["text_config"])
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "model_type": language,
        "rope_scaling": {"type": rope["type"], "factor": rope["factor"]} if "factor" in rope else None,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": vision["image_size"][0],
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
        "llm_config": text,
        "system_message": None,
        "vision_config": {
            "hidden_size": vision["hidden_size"],
            "num_attention_heads": vision["num_attention_heads"],
            "norm_type": "layer_norm",
            "qk_normalization": False,
            "qkv_bias": True,
            "layer_norm_eps": 1e-6,
            "image_size": vision["image_size"][0],
            "patch_size": vision["patch_size"][0],
            "num_hidden_layers": vision["num_hidden_layers"],
        },
    }


def folder_words(language: str) -> dict[str, int]:
    """The ids of the added tokens."""
    names = SPECIAL[1:] if language == "internlm2" else SPECIAL
    return {name: PIECES + number for number, name in enumerate(names)}


def make_write(made, id: int) -> None:
    """Every token is large in the first channel, which adds to the logit of `id` and takes from all others."""
    with torch.no_grad():
        made.model.language_model.embed_tokens.weight[:, 0] = 100.0
        made.model.language_model.norm.weight.fill_(1.0)
        made.lm_head.weight[:, 0] = -10.0
        made.lm_head.weight[id, 0] = 10.0


def _write(path: Path, content) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
