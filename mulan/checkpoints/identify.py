"""What a file is, told by the names and shapes of its tensors, for messages a user can act on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

# Width of the context that a MuLan adapter makes -> the models that read it
ADAPTER_TITLES = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.1", 2048: "SDXL", 4096: "PixArt"}
_CLIP_TITLES = {768: "CLIP-L", 1024: "CLIP-H", 1280: "CLIP-G"}  # width -> the usual name


def identify(shapes: Shapes) -> str:
    """Return what a file of these tensors is, as the end of a sentence "this is ..."."""
    return next((text if isinstance(text, str) else text(shapes) for is_it, text in _RULES if is_it(shapes)))


def adapter_layout(shapes: Shapes, prefix: str = "") -> str | None:
    """Return how a MuLan adapter is built, None for other files.

    ``one`` language adapter (SD1.5, SD2.1), ``two`` (SDXL), or a ``projection`` (PixArt).
    """
    if f"{prefix}adapter1.queries" in shapes:
        return "two"
    if f"{prefix}queries" in shapes and f"{prefix}proj.0.weight" in shapes:
        return "one"
    if not prefix and len(shapes) == 4 and len(shapes.get("linear_1.weight", ())) == 2 and "linear_2.weight" in shapes:
        return "projection"
    return None


def is_visionllm(shapes: Shapes) -> bool:
    """Return whether the tensors are VisionLLM v2's: a language model, and the bridge from its vision tower."""
    return all(any(name.startswith(prefix) for name in shapes) for prefix in ("llm.", "vl_bridge."))


def is_internvl_chat(shapes: Shapes) -> bool:
    """Return whether the tensors are those of an InternVL chat model, in OpenGVLab's layout or in transformers'."""
    return all(
        any(part in name for name in shapes for part in parts)
        for parts in (("vision_model.", "vision_tower."), ("mlp1.", "multi_modal_projector."), ("language_model.",))
    )


def _is_intern_vit(shapes: Shapes) -> bool:
    return all(name.startswith(("embeddings.", "encoder.layers.")) for name in shapes) and _has(
        ".attn.q_norm.weight", ".ls1"
    )(shapes)


def _has(*parts: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(part in name for name in shapes for part in parts)


def _adapter(shapes: Shapes) -> str:
    layout = adapter_layout(shapes)
    width = {"one": (shapes.get("queries") or (0,))[-1], "two": 2048, "projection": 4096}[layout or "one"]
    return f"a MuLan adapter for {ADAPTER_TITLES.get(width, 'an unknown family')}"


def _contrastive(shapes: Shapes) -> str:
    side = "" if _has("embed_tokens.")(shapes) else ", without its text encoder"
    return f"an InternVL-C or -G checkpoint{side} (it belongs in models/internvl)"


_CLIP_LAYER = "text_model.encoder.layers.0.mlp.fc1.weight"


def _clip(shapes: Shapes) -> str:
    width = next(shape[-1] if shape else 0 for name, shape in shapes.items() if name.endswith(_CLIP_LAYER))
    return f"a {_CLIP_TITLES.get(width, f'CLIP (width {width})')} text encoder"


def _unknown(shapes: Shapes) -> str:
    return f"no file this pack knows (its tensors begin with {', '.join(list(shapes)[:3])})"


# The first rule that fits a file names it, so the order matters.
_RULES: tuple[tuple[Callable[[Shapes], bool], str | Callable[[Shapes], str]], ...] = (
    (lambda shapes: not shapes, "a file without tensors"),
    (lambda shapes: adapter_layout(shapes) is not None, _adapter),
    (is_visionllm, "a VisionLLM v2 model (it belongs in models/visionllm)"),
    (lambda shapes: "clip_projector.cross_attn.q.weight" in shapes, _contrastive),
    (is_internvl_chat, "an InternVL chat model (it belongs in models/internvl_chat)"),
    (_is_intern_vit, "InternViT alone, a vision tower without the parts that make embeddings"),
    (_has("model.diffusion_model."), "a whole checkpoint (it belongs in models/checkpoints)"),
    (_has("lora_unet_", "lora_te", ".lora_down.", ".lora_up.", ".lora_A."), "a LoRA (it belongs in models/loras)"),
    (
        _has("control_model.", "controlnet_cond_embedding.", "input_hint_block."),
        "a ControlNet (it belongs in models/controlnet)",
    ),
    (lambda shapes: any(name.endswith(_CLIP_LAYER) for name in shapes), _clip),
    (_has("transformer.resblocks.0."), "an OpenCLIP text encoder"),
    (_has("encoder.block.0.layer.0.SelfAttention"), "a T5 text encoder"),
    (_has("vision_model.encoder.layers.0.", "visual.blocks.0."), "a vision encoder"),
    (
        _has("double_blocks.0.", "joint_blocks.0.", "transformer_blocks.0.", "down_blocks.0."),
        "a diffusion model (it belongs in models/diffusion_models)",
    ),
    (
        _has("encoder.conv_in.weight", "decoder.conv_in.weight", "first_stage_model."),
        "a VAE (it belongs in models/vae)",
    ),
    (_has("model.embed_tokens.weight"), "a large language model's text encoder (it belongs in models/text_encoders)"),
    (lambda shapes: True, _unknown),
)
