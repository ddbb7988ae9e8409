"""A chat model's tensors under OpenGVLab's names; transformers' own names ("-hf" checkpoints) are read as those."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import nn

from ..checkpoints import internlm2
from ..checkpoints.tensor_files import TensorFile
from ..checkpoints.weight_source import WeightSource
from ..internvl import intern_vit_keys
from .chat_language_model import HEAD_NORM, LanguageConfig
from .chat_model import ChatConfig, InternVLChat

VISION, LANGUAGE, PROJECTOR = "vision_model.", "language_model.", "mlp1."
FIRST = f"{LANGUAGE}model.layers.0."
HEAD = f"{LANGUAGE}model.lm_head.weight"  # in ComfyUI's LLaMA; published beside `model`
# `model_type` in config.json -> what stands for entries that it leaves out: transformers' defaults
LANGUAGES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 32768},
    "qwen3": {
        "num_attention_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 32768,
        "head_dim": 128,
    },
    "llama": {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048},
    "internlm2": {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048},
}
VISION_HEADS = 16  # likewise
TEMPLATE = "internvl2_5"
PLAIN_ROPE = (
    None,
    "default",
    "dynamic",
)  # dynamic: plain up to max_position_embeddings, and longer prompts are refused

# The beginnings of transformers' names, and what follows them -> OpenGVLab's
_BEGINNINGS = {
    "model.vision_tower.": VISION,
    "vision_tower.": VISION,
    "model.multi_modal_projector.": PROJECTOR,
    "multi_modal_projector.": PROJECTOR,
    "model.language_model.": f"{LANGUAGE}model.",
    "lm_head.": f"{LANGUAGE}lm_head.",
}
_PARTS = {
    VISION: {
        "embeddings.cls_token": "embeddings.class_embedding",
        "embeddings.position_embeddings": "embeddings.position_embedding",
        "embeddings.patch_embeddings.projection.": "embeddings.patch_embedding.",
        "encoder.layer.": "encoder.layers.",
        ".lambda_": ".ls",
        ".layernorm_before.": ".norm1.",
        ".layernorm_after.": ".norm2.",
        ".attention.projection_layer.": ".attn.proj.",
        ".attention.q_norm.": ".attn.q_norm.",
        ".attention.k_norm.": ".attn.k_norm.",
        ".attention.q_proj.": ".attn.qkv.",
        ".attention.k_proj.": ".attn.qkv.",
        ".attention.v_proj.": ".attn.qkv.",
    },
    PROJECTOR: {"layer_norm.": "0.", "linear_1.": "1.", "linear_2.": "3."},
}

Shapes = Mapping[str, tuple[int, ...]]


def as_published(file: TensorFile) -> TensorFile:
    """Return the same file with OpenGVLab's names.

    The tower's queries, keys and values, which transformers keeps apart, are one tensor.
    """
    stored: dict[str, list[str]] = {}
    for name in file.shapes:
        stored.setdefault(_published(name), []).append(name)
    for names in stored.values():
        names.sort(key=lambda name: "qkv".find(name.rsplit("_proj.", 1)[0][-1]))
    shapes = {
        name: file.shapes[parts[0]]
        if len(parts) == 1
        else (sum(file.shapes[part][0] for part in parts), *file.shapes[parts[0]][1:])
        for name, parts in stored.items()
    }
    return TensorFile(file.path, shapes, lambda name: WeightSource(tuple(stored[name])).read(file.read), file.metadata)


def configuration(shapes: Shapes, config: Mapping[str, Any]) -> ChatConfig:
    """Return the sizes, from the tensors' shapes and else from `config` (config.json).

    Raises KeyError where a tensor or an entry is missing, ValueError for other models.
    """
    if config.get("template", TEMPLATE) != TEMPLATE:
        raise ValueError(
            f"its chat template is {config['template']!r}, expected {TEMPLATE!r} (InternVL 2.5, 3 and 3.5)"
        )
    tower = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    vision = intern_vit_keys.configuration(tower, {"num_attention_heads": VISION_HEADS, **config["vision_config"]})
    merge_size = isqrt(shapes[f"{PROJECTOR}0.weight"][0] // vision.hidden_size)
    return ChatConfig(vision, _language(shapes, config.get("llm_config") or config["text_config"]), merge_size)


def sources(config: ChatConfig, shapes: Shapes) -> dict[str, WeightSource]:
    """Return the published tensors of each of ours: the same name, but where ComfyUI's LLaMA or InternLM2 differ."""
    names = InternVLChat(config, operations=nn, device="meta").state_dict()
    found = {name: WeightSource((name,)) for name in names}
    if HEAD in found:
        found[HEAD] = WeightSource((f"{LANGUAGE}lm_head.weight",))
    if f"{FIRST}attention.wqkv.weight" in shapes:
        language = config.language
        as_llama = internlm2.sources(language.num_hidden_layers, language.num_key_value_heads, language.head_dim)
        found |= {f"{LANGUAGE}model.{name}": source.under(LANGUAGE) for name, source in as_llama.items()}
    return found


def unused(name: str) -> bool:
    """Return whether a tensor of the file is known and not needed."""
    return name.endswith("rotary_emb.inv_freq")  # some files keep it; it follows from the size of a head


def _language(shapes: Shapes, config: Mapping[str, Any]) -> LanguageConfig:
    kind = config.get("model_type")
    if kind not in LANGUAGES:
        raise ValueError(f"its language model is {kind!r}, expected one of {', '.join(LANGUAGES)}")
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    config = {**LANGUAGES[kind], **{name: value for name, value in {**rope, **config}.items() if value is not None}}
    rope_type = scaling.get("rope_type") or scaling.get("type")
    if rope_type not in PLAIN_ROPE:
        raise ValueError(f"its language model scales positions by {rope_type!r}, expected 'dynamic' or none")
    packed = f"{FIRST}attention.wqkv.weight" in shapes
    embeddings, gate = ("tok_embeddings", "feed_forward.w1") if packed else ("embed_tokens", "mlp.gate_proj")
    vocab_size, hidden_size = shapes[f"{LANGUAGE}model.{embeddings}.weight"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden_size // heads
    rows = (
        shapes[f"{FIRST}attention.wqkv.weight"][0]
        if packed
        else heads * head_dim + 2 * shapes[f"{FIRST}self_attn.k_proj.weight"][0]
    )
    head_norm = HEAD_NORM if f"{FIRST}self_attn.q_norm.weight" in shapes else None
    return LanguageConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=shapes[f"{FIRST}{gate}.weight"][0],
        num_hidden_layers=1
        + max(int(name.split(".")[3]) for name in shapes if name.startswith(f"{LANGUAGE}model.layers.")),
        num_attention_heads=heads,
        num_key_value_heads=(rows // head_dim - heads) // 2,
        head_dim=head_dim,
        rms_norm_eps=config["rms_norm_eps"],
        rope_theta=config["rope_theta"],
        max_position_embeddings=config["max_position_embeddings"],
        qkv_bias=f"{FIRST}self_attn.q_proj.bias" in shapes,
        q_norm=head_norm,
        k_norm=head_norm,
        lm_head=bool({f"{LANGUAGE}lm_head.weight", f"{LANGUAGE}output.weight"} & shapes.keys()),
    )


def _published(name: str) -> str:
    for beginning, published in _BEGINNINGS.items():
        if name.startswith(beginning):
            rest = name.removeprefix(beginning)
            for part, instead in _PARTS.get(published, {}).items():
                rest = rest.replace(part, instead)
            return published + rest
    return name
