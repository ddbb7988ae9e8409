"""What a file is, told by the names of its tensors: for messages a person can act on."""

from __future__ import annotations

from collections.abc import Mapping

from ..conditioning.families import FAMILIES, PIXART, SDXL


def identify(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a file of these tensors is, in the words of a user."""
    if adapter_layout(shapes) is not None:
        return f"a MuLan adapter for {_adapter_family(shapes)}"

    if is_visionllm(shapes):
        return "a VisionLLM v2 model (it belongs in models/visionllm)"

    def has(*parts: str) -> bool:
        return any(part in name for name in shapes for part in parts)

    if "clip_projector.cross_attn.q.weight" in shapes:
        side = "" if has("embed_tokens.") else ", without its text encoder"
        return f"an InternVL-C or -G checkpoint{side} (it belongs in models/internvl)"
    if is_internvl_chat(shapes):
        return "an InternVL chat model (it belongs in models/internvl_chat)"
    if all(name.startswith(("embeddings.", "encoder.layers.")) for name in shapes) and has(
        ".attn.q_norm.weight", ".ls1"
    ):
        return "InternViT alone, a vision tower without what makes embeddings of it"
    if has("model.diffusion_model."):
        return "a whole checkpoint (it belongs in models/checkpoints)"
    if has("lora_unet_", "lora_te", ".lora_down.", ".lora_up.", ".lora_A."):
        return "a LoRA (it belongs in models/loras)"
    if has("control_model.", "controlnet_cond_embedding.", "input_hint_block."):
        return "a ControlNet (it belongs in models/controlnet)"
    clip = next(
        (shape for name, shape in shapes.items() if name.endswith("text_model.encoder.layers.0.mlp.fc1.weight")), None
    )
    if clip is not None:
        which = {768: "CLIP-L", 1024: "CLIP-H", 1280: "CLIP-G"}.get(clip[1], f"CLIP (width {clip[1]})")
        return f"a {which} text encoder"
    if has("transformer.resblocks.0."):
        return "an OpenCLIP text encoder"
    if has("encoder.block.0.layer.0.SelfAttention"):
        return "a T5 text encoder"
    if has("vision_model.encoder.layers.0.", "visual.blocks.0."):
        return "a vision encoder"
    if has("double_blocks.0.", "joint_blocks.0.", "transformer_blocks.0.", "down_blocks.0."):
        return "a diffusion model (it belongs in models/diffusion_models)"
    if has("encoder.conv_in.weight", "decoder.conv_in.weight", "first_stage_model."):
        return "a VAE (it belongs in models/vae)"
    if has("model.embed_tokens.weight"):
        return "a large language model's text encoder (it belongs in models/text_encoders)"
    if not shapes:
        return "a file without tensors"
    return f"no file this pack knows (its tensors begin with {', '.join(list(shapes)[:3])})"


def adapter_layout(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> str | None:
    """How a MuLan adapter is built: ``one`` language adapter (SD1.5, SD2.1), ``two`` (SDXL), a ``projection`` (PixArt); None for other files."""
    if f"{prefix}adapter1.queries" in shapes:
        return "two"
    if f"{prefix}queries" in shapes and f"{prefix}proj.0.weight" in shapes:
        return "one"
    if not prefix and len(shapes) == 4 and len(shapes.get("linear_1.weight", ())) == 2 and "linear_2.weight" in shapes:
        return "projection"
    return None


def is_visionllm(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the tensors are VisionLLM v2's: a language model, and the bridge from its vision tower."""
    return all(any(name.startswith(prefix) for name in shapes) for prefix in ("llm.", "vl_bridge."))


def is_internvl_chat(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the tensors are those of an InternVL that talks, in OpenGVLab's layout or in transformers'."""
    return all(
        any(part in name for name in shapes for part in parts)
        for parts in (("vision_model.", "vision_tower."), ("mlp1.", "multi_modal_projector."), ("language_model.",))
    )


def _adapter_family(shapes: Mapping[str, tuple[int, ...]]) -> str:
    layout = adapter_layout(shapes)
    if layout != "one":
        return (SDXL if layout == "two" else PIXART).title
    return next(
        (family.title for family in FAMILIES if family.context_width == shapes["queries"][-1]), "an unknown family"
    )
