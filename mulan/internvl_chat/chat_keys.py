"""A dialogue model's tensors under OpenGVLab's names; transformers' own names ("-hf" checkpoints) are read as those."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from ..checkpoints import internlm2
from ..checkpoints.tensor_files import TensorFile
from ..checkpoints.weight_source import WeightSource
from ..internvl import intern_vit_keys
from .chat_language_model import LanguageConfig
from .chat_model import ChatConfig

VISION, LANGUAGE, PROJECTOR = "vision_model.", "language_model.", "mlp1."
FIRST = f"{LANGUAGE}model.layers.0."
# `model_type` in config.json -> what the entries are that it leaves out, as transformers does with its defaults
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
PLAIN_ROPE = (None, "default", "dynamic")  # dynamic: plain up to the longest text, and longer ones are not given to it

# transformers' names begin and go on like this -> OpenGVLab's
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
_PROJECTOR = {"norm": "0", "up": "1", "out": "3"}

Shapes = Mapping[str, tuple[int, ...]]


def as_published(file: TensorFile) -> TensorFile:
    """The same file with OpenGVLab's names; the tower's queries, keys and values, which transformers keeps apart, are one tensor."""
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


def configuration(shapes: Shapes, told: Mapping[str, Any]) -> ChatConfig:
    """Sizes from the tensors, the rest from config.json (`told`). Raises KeyError where a tensor or entry is missing, ValueError for other models."""
    if told.get("template", TEMPLATE) != TEMPLATE:
        raise ValueError(
            f"its template of talks is {told['template']!r}, known is {TEMPLATE!r} (InternVL 2.5, 3 and 3.5)"
        )
    tower = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    vision = intern_vit_keys.configuration(tower, {"num_attention_heads": VISION_HEADS, **told["vision_config"]})
    merged = isqrt(shapes[f"{PROJECTOR}0.weight"][0] // vision.width)
    return ChatConfig(vision, _language(shapes, told.get("llm_config") or told["text_config"]), merged)


def sources(config: ChatConfig, shapes: Shapes) -> dict[str, WeightSource]:
    """Our names -> the published ones."""
    found = {f"vision.{ours}": source.under(VISION) for ours, source in intern_vit_keys.sources(config.vision).items()}
    found |= {
        f"projector.{ours}.{kind}": WeightSource((f"{PROJECTOR}{theirs}.{kind}",))
        for ours, theirs in _PROJECTOR.items()
        for kind in ("weight", "bias")
    }
    return found | {
        f"language.model.{ours}": source.under(LANGUAGE)
        for ours, source in _language_sources(config.language, shapes).items()
    }


def unused(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq")  # some files keep it; it follows from the number of heads


def _language(shapes: Shapes, told: Mapping[str, Any]) -> LanguageConfig:
    kind = told.get("model_type")
    if kind not in LANGUAGES:
        raise ValueError(f"its language model is {kind!r}, known are {', '.join(LANGUAGES)}")
    rope = told.get("rope_parameters") or {}
    scaling = told.get("rope_scaling") or rope
    told = {**LANGUAGES[kind], **{name: value for name, value in {**rope, **told}.items() if value is not None}}
    turned = scaling.get("rope_type") or scaling.get("type")
    if turned not in PLAIN_ROPE:
        raise ValueError(f"its language model scales positions by {turned!r}, known is 'dynamic'")
    packed = f"{FIRST}attention.wqkv.weight" in shapes
    table, up = ("tok_embeddings", "feed_forward.w1") if packed else ("embed_tokens", "mlp.gate_proj")
    vocabulary, width = shapes[f"{LANGUAGE}model.{table}.weight"]
    heads = told["num_attention_heads"]
    head = told.get("head_dim") or width // heads
    rows = (
        shapes[f"{FIRST}attention.wqkv.weight"][0]
        if packed
        else heads * head + 2 * shapes[f"{FIRST}self_attn.k_proj.weight"][0]
    )
    return LanguageConfig(
        vocabulary=vocabulary,
        width=width,
        feed_forward=shapes[f"{FIRST}{up}.weight"][0],
        layers=1 + max(int(name.split(".")[3]) for name in shapes if name.startswith(f"{LANGUAGE}model.layers.")),
        heads=heads,
        key_value_heads=(rows // head - heads) // 2,
        head=head,
        norm_eps=told["rms_norm_eps"],
        rope_theta=told["rope_theta"],
        longest=told["max_position_embeddings"],
        qkv_bias=f"{FIRST}self_attn.q_proj.bias" in shapes,
        qk_norm=f"{FIRST}self_attn.q_norm.weight" in shapes,
        tied=not {f"{LANGUAGE}lm_head.weight", f"{LANGUAGE}output.weight"} & shapes.keys(),
    )


def _language_sources(config: LanguageConfig, shapes: Shapes) -> dict[str, WeightSource]:
    if f"{FIRST}attention.wqkv.weight" in shapes:
        return internlm2.sources(config.layers, config.key_value_heads, config.head)
    linear = (
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        "input_layernorm",
        "post_attention_layernorm",
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"self_attn.{part}_norm" for part in "qk" if config.qk_norm),
    )
    in_layer = [
        *(f"{part}.weight" for part in linear),
        *(f"self_attn.{part}_proj.bias" for part in "qkv" if config.qkv_bias),
    ]
    ours = [
        "embed_tokens.weight",
        "norm.weight",
        *(f"layers.{layer}.{part}" for layer in range(config.layers) for part in in_layer),
    ]
    return {name: WeightSource((f"model.{name}",)) for name in ours} | (
        {} if config.tied else {"lm_head.weight": WeightSource(("lm_head.weight",))}
    )


def _published(name: str) -> str:
    for beginning, published in _BEGINNINGS.items():
        if name.startswith(beginning):
            rest = name.removeprefix(beginning)
            for part, instead in _PARTS.get(published, {}).items():
                rest = rest.replace(part, instead)
            return published + rest
    return name
