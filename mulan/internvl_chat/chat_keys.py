"""A chat model's tensors under OpenGVLab's names; transformers' own names ("-hf" checkpoints) are read as those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

from torch import nn

from ..checkpoints import internlm2
from ..checkpoints.config import EPS_RANGE, MAX_HEADS, ROPE_RANGE, Config
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path
from ..checkpoints.weight_check import count_layers, shape_of
from ..checkpoints.weight_source import WeightSource
from ..internvl import intern_vit_keys
from ..internvl.intern_vit import InternViTConfig
from .chat_language_model import HEAD_NORM, LanguageConfig
from .chat_model import COARSER, ChatConfig, InternVLChat
from .chat_router import NUM_HEADS, UNREAD, RouterConfig

VISION, LANGUAGE, PROJECTOR = "vision_model.", "language_model.", "mlp1."
POOLING = "pooling_before_gating."  # of the Flash models
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
# dynamic: plain up to max_position_embeddings, and longer prompts are refused
PLAIN_ROPE = ("default", "dynamic")
MAX_HEAD_DIM, MAX_POSITIONS = 1024, 2**24

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
    for published, names in stored.items():
        if len(names) > 1:
            stored[published] = _in_order(file, names)
    first = file.renamed({name: parts[0] for name, parts in stored.items()})
    rows = {name: sum(file.shapes[part][0] for part in parts) for name, parts in stored.items() if len(parts) > 1}
    return replace(
        first,
        shapes={name: (rows[name], *shape[1:]) if name in rows else shape for name, shape in first.shapes.items()},
        read=lambda name: WeightSource(tuple(stored[name])).read(file.read),
    )


def configuration(shapes: Shapes, config: Config) -> ChatConfig:
    """Return the sizes, from the tensors' shapes and else from `config` (config.json).

    Raises KeyError where a tensor is missing, ValueError for other models, WrongFileError for `config`.
    """
    language = config.section("llm_config" if "llm_config" in config else "text_config")
    # The first: a model that fails here differs elsewhere too, and this names it.
    language.choice("model_type", tuple(LANGUAGES), advice="Choose another size, such as InternVL3-1B, -2B, -8B.")
    config.choice("template", (TEMPLATE,), TEMPLATE, advice="Choose InternVL 2.5, 3 or 3.5.")
    tower = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    heads = {"num_attention_heads": VISION_HEADS}
    vision = intern_vit_keys.configuration(tower, config.section("vision_config").with_defaults(heads))
    merge_size = isqrt(shape_of(shapes, f"{PROJECTOR}0.weight", 1)[0] // vision.hidden_size)
    if not merge_size or vision.image_size // vision.patch_size % merge_size:
        raise ValueError(
            f"its projector reads {shapes[f'{PROJECTOR}0.weight'][0]} channels, which squares of patches of "
            f"{vision.hidden_size} channels in an image of {vision.image_size // vision.patch_size} patches do not give"
        )
    return ChatConfig(vision, _language(shapes, language), merge_size, _router(config, vision, merge_size))


def sources(config: ChatConfig, shapes: Shapes) -> dict[str, WeightSource]:
    """Return the published tensors of each of ours: the same name, but where ComfyUI's LLaMA or InternLM2 differ."""
    names = InternVLChat(config, operations=nn, device="meta").state_dict()
    found = {name: WeightSource((name,)) for name in names}
    for name in found:
        if name.startswith(POOLING):
            found[name] = WeightSource((name.replace(".in_proj.", ".in_proj_"),))
    if HEAD in found:
        found[HEAD] = WeightSource((f"{LANGUAGE}lm_head.weight",))
    if f"{FIRST}attention.wqkv.weight" in shapes:
        language = config.language
        as_llama = internlm2.sources(language.num_hidden_layers, language.num_key_value_heads, language.head_dim)
        found |= {f"{LANGUAGE}model.{name}": source.under(LANGUAGE) for name, source in as_llama.items()}
    return found


def unused(name: str) -> bool:
    """Return whether a tensor of the file is known and not needed."""
    if name.startswith(POOLING):
        return name.removeprefix(POOLING).startswith(UNREAD)
    return name.endswith("rotary_emb.inv_freq")  # some files keep it; it follows from the size of a head


def _router(config: Config, vision: InternViTConfig, merge_size: int) -> RouterConfig | None:
    """Return the router of a Flash model, None for others."""
    if not config.flag("flash_mode", False):
        return None
    side, merged = vision.image_size // vision.patch_size, COARSER * merge_size
    if side % merged or vision.hidden_size % NUM_HEADS:
        raise ValueError(
            f"it is a Flash model, whose vision tower must have rows of patches divided by {merged} and a width that "
            f"{NUM_HEADS} divides, not {side} and {vision.hidden_size}"
        )
    relative, absolute = (config.number(f"flash_{kind}_threshold", low=0, high=1) for kind in ("relative", "absolute"))
    return RouterConfig(relative, absolute)


def _language(shapes: Shapes, config: Config) -> LanguageConfig:
    kind = config.text("model_type")
    rope = config.section("rope_parameters")
    scaling = config.section("rope_scaling") if "rope_scaling" in config else rope
    scaling.choice("rope_type" if "rope_type" in scaling else "type", PLAIN_ROPE, PLAIN_ROPE[0])
    config = config.with_defaults({**LANGUAGES[kind], **rope.entries})
    packed = f"{FIRST}attention.wqkv.weight" in shapes
    embeddings, gate = ("tok_embeddings", "feed_forward.w1") if packed else ("embed_tokens", "mlp.gate_proj")
    vocab_size, hidden_size = shape_of(shapes, f"{LANGUAGE}model.{embeddings}.weight", 2)
    heads = config.integer("num_attention_heads", high=MAX_HEADS)
    head_dim = config.integer("head_dim", hidden_size // heads or None, high=MAX_HEAD_DIM)
    rows = (
        shape_of(shapes, f"{FIRST}attention.wqkv.weight", 2)[0]
        if packed
        else heads * head_dim + 2 * shape_of(shapes, f"{FIRST}self_attn.k_proj.weight", 2)[0]
    )
    key_value_heads = (rows // head_dim - heads) // 2
    if head_dim % 2 or key_value_heads < 1 or heads % key_value_heads:
        raise config.wrong("num_attention_heads", f"a number of heads that fits the tensors (heads of {head_dim})")
    head_norm = HEAD_NORM if f"{FIRST}self_attn.q_norm.weight" in shapes else None
    return LanguageConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=shape_of(shapes, f"{FIRST}{gate}.weight", 2)[0],
        num_hidden_layers=count_layers(shapes, f"{LANGUAGE}model.layers."),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number("rms_norm_eps", **EPS_RANGE),
        rope_theta=config.number("rope_theta", **ROPE_RANGE),
        max_position_embeddings=config.integer("max_position_embeddings", high=MAX_POSITIONS),
        qkv_bias=f"{FIRST}self_attn.q_proj.bias" in shapes,
        q_norm=head_norm,
        k_norm=head_norm,
        lm_head=bool({f"{LANGUAGE}lm_head.weight", f"{LANGUAGE}output.weight"} & shapes.keys()),
    )


def _in_order(file: TensorFile, names: Sequence[str]) -> list[str]:
    """Return the names of queries, keys and values that are one tensor together.

    Raises WrongFileError where other names stand for one tensor, or the three differ in shape or dtype.
    """
    parts = {name.rsplit(".", 1)[0][-len("q_proj") :]: name for name in names}
    if parts.keys() != {"q_proj", "k_proj", "v_proj"} or len(names) > len(parts):
        raise WrongFileError(
            f"{describe_path(file.path)} holds one tensor under several names, {' and '.join(sorted(names)[:2])}: it "
            f"is damaged. Download it again."
        )
    forms = {(file.shapes[name], file.dtypes.get(name)) for name in names}
    if len(forms) > 1 or not file.shapes[names[0]]:
        found = " and ".join(f"{dtype} {list(shape)}" for shape, dtype in sorted(forms, key=str))
        raise WrongFileError(
            f"{describe_path(file.path)}: {sorted(names)[0]} and its like hold {found}, expected one dtype and one "
            f"shape for queries, keys and values. Download it again."
        )
    return [parts[f"{part}_proj"] for part in "qkv"]


def _published(name: str) -> str:
    for beginning, published in _BEGINNINGS.items():
        if name.startswith(beginning):
            rest = name.removeprefix(beginning)
            for part, instead in _PARTS.get(published, {}).items():
                rest = rest.replace(part, instead)
            return published + rest
    return name
