"""VisionLLM v2 -> one .safetensors, tokenizer and configuration inside; its InstructPix2Pix UNet -> a second one.

Published names stay, so that `open_visionllm` reads both alike. Only what the model reads is written: neither second
names of shared tensors nor buffers that are recomputed, nor the parts of Stable Diffusion that were not trained.
Upstream trained the UNet that edits images, so it is kept, for ComfyUI's own loader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import comfy.model_detection
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...visionllm_nodes.model.keys import internlm2
from ...visionllm_nodes.model.visionllm_files import (
    SOURCE,
    SPIECE,
    TOKENIZER,
    VisionLLMFile,
    unused_tensors,
    visionllm_from_tensors,
)
from ..checkpoints.identify import is_visionllm
from ..checkpoints.quantization import FORMATS, Quantization
from ..checkpoints.tensor_files import CONFIG, TensorFile, WrongFileError, describe_path
from .output_files import (
    Converter,
    Plan,
    Precision,
    Target,
    as_bytes,
    make_metadata,
    plan_output,
    plan_precisions,
    refuse_quantized,
    stem,
)

EDITING_UNET = "ip2p.sd_unet."  # diffusers' names, 8 input channels
# Parts of Stable Diffusion 1.5 as it is published
STOCK = ("sd.sd_unet.", "sd.sd_vae.", "sd.sd_text_encoder.", "ip2p.sd_vae.", "ip2p.sd_text_encoder.")


def matches(file: TensorFile) -> bool:
    """Return whether it is VisionLLM v2."""
    return is_visionllm(file.shapes)


def plan(source: TensorFile, target: Target, weight_format: str) -> Plan:
    """Plan the model's file and, where the source has it, the file of the UNet that edits images."""
    opened, quantization = visionllm_from_tensors(source), FORMATS[weight_format]
    file = opened.file
    refuse_quantized(file.path, file.shapes, SOURCE)
    tokenizer = as_bytes(opened.tokenizer().model)
    path = target.file(f"{stem(file.path)}_{weight_format}.safetensors")
    unet_path = path.with_name(f"{path.stem.removesuffix(f'_{weight_format}')}_instructpix2pix.safetensors")
    unet = comfy_unet(file)
    if unet:
        target.checked(unet_path)

    used = {name for weight_source in opened.sources().values() for name in weight_source.names}
    names = {name: name for name in file.shapes if name in used}  # in the file's order
    matrices = language_matrices(opened, quantization) if quantization else set()
    precisions = plan_precisions(file, [*names, *unet.values()], matrices, quantization)
    language = opened.parts["language"]
    sizes = f"{language.config.num_hidden_layers} layers, width {language.config.hidden_size}"
    made_as = "an InternLM2" if language.names is internlm2 else "of LLaMA's family"
    metadata = make_metadata(
        "VisionLLM v2",
        file.path,
        SOURCE,
        license=f"Apache-2.0, as VisionLLM's repository states it for its code; the language model is {made_as}",
        weight_format=weight_format,
        **{CONFIG: json.dumps({**opened.config, TOKENIZER: opened.tokenizer_config()})},
    )
    title = f"VisionLLM v2 (language model of {sizes}) in {weight_format}"
    outputs = [plan_output(path, title, "visionllm", metadata, file, names, precisions, {SPIECE: tokenizer})]
    if unet:
        title = "InstructPix2Pix UNet that VisionLLM v2 trained"
        license = "none stated; it was trained from Stable Diffusion 1.5's"
        metadata = make_metadata(title, file.path, SOURCE, license=license)
        outputs.append(plan_output(unet_path, title, "diffusion_models", metadata, file, unet, precisions))
    return Plan(tuple(outputs), _notes(opened, precisions, {*names, *unet.values()}))


def language_matrices(opened: VisionLLMFile, quantization: Quantization) -> set[str]:
    """Return the published names of the language model's weights to quantize, whichever make it is of."""
    return {
        name
        for ours, source in opened.parts["language"].sources().items()
        if quantization.applies_to(f"model.{ours}")
        for name in source.names
    }


def comfy_unet(file: TensorFile) -> dict[str, str]:
    """Return ComfyUI's names of the editing UNet's tensors -> the published ones; none where there is no such UNet.

    Raise WrongFileError where ComfyUI would not take it for InstructPix2Pix, or a tensor is missing.
    """
    shapes = {
        name.removeprefix(EDITING_UNET): shape for name, shape in file.shapes.items() if name.startswith(EDITING_UNET)
    }
    if not shapes:
        return {}
    known = _diffusers_names(shapes)
    names = {known.get(name, name): f"{EDITING_UNET}{name}" for name in shapes}
    given = {
        name: torch.empty(file.shapes[stored], dtype=torch.float16, device="meta") for name, stored in names.items()
    }
    config = comfy.model_detection.model_config_from_unet(given, "") if "input_blocks.0.0.weight" in given else None
    if not isinstance(config, comfy.supported_models.SD15_instructpix2pix):
        raise WrongFileError(
            f"{describe_path(file.path)}: the UNet {EDITING_UNET}* is not InstructPix2Pix's of Stable Diffusion 1.5. "
            f"Download the checkpoint from {SOURCE}."
        )
    wanted = UNetModel(**config.unet_config, device="meta", operations=comfy.ops.disable_weight_init).state_dict()
    found, expected = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (given, wanted))
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise WrongFileError(
            f"{describe_path(file.path)}: its UNet {EDITING_UNET}* is incomplete or damaged: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, the first is {wrong[0]} in ComfyUI's names. Download it again."
        )
    return names


def _diffusers_names(names: Mapping[str, object]) -> dict[str, str]:
    """Return diffusers' names of a UNet's tensors -> ComfyUI's; the blocks are counted in the names."""

    def count(prefix: str) -> int:
        return comfy.model_detection.count_blocks(names, f"{prefix}.{{}}.")

    def depths(side: str, blocks: list[int]) -> list[int]:
        return [
            count(f"{side}_blocks.{level}.attentions.{block}.transformer_blocks")
            for level, num_blocks in enumerate(blocks)
            for block in range(num_blocks)
        ]

    blocks = [count(f"down_blocks.{level}.resnets") for level in range(count("down_blocks"))]
    return comfy.utils.unet_to_diffusers(
        {
            "num_res_blocks": blocks,
            "channel_mult": blocks,
            "transformer_depth": depths("down", blocks),
            "transformer_depth_middle": count("mid_block.attentions.0.transformer_blocks"),
            "transformer_depth_output": depths("up", [num_blocks + 1 for num_blocks in reversed(blocks)])[::-1],
        }
    )


def _notes(opened: VisionLLMFile, precisions: Mapping[str, Precision], kept: set[str]) -> tuple[str, ...]:
    shapes = opened.file.shapes
    stock = [name for name in shapes if name.startswith(STOCK)]
    stray = [name for name in unused_tensors(opened) if name not in kept]
    twice = len(shapes.keys() - kept - {SPIECE}) - len(stock) - len(stray)
    large = [name for name, precision in precisions.items() if precision is torch.bfloat16]
    size = 2 * sum(math.prod(shapes[name]) for name in stock) / 1e9
    notes = {
        f"Left out: Stable Diffusion 1.5 as it is published (UNet, text encoders, VAEs: {len(stock)} tensors, "
        f"{size:.1f} GB in 16 bits); ComfyUI loads it from models/checkpoints.": stock,
        f"Left out: {twice} tensors that are second names of others, or never needed.": twice,
        f"Left out: {len(stray)} tensors that no part of the model reads, the first is {stray[:1]}.": stray,
        f"In bfloat16, because their values are too large for float16: {len(large)} tensors, "
        f"the first is {large[:1]}.": large,
    }
    return tuple(text for text, applies in notes.items() if applies)


CONVERTER = Converter(matches, plan)
