"""A checkpoint of VisionLLM v2 -> one .safetensors with its tokenizer and configuration inside, and its InstructPix2Pix UNet for the host's loader.

Published names stay, so that `open_visionllm` reads both alike. Only what the model reads is written: neither second names of shared tensors
nor buffers that are recomputed, nor the parts of Stable Diffusion that were not trained. Upstream trained the UNet that edits pictures, so it is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import comfy.model_detection
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...visionllm_nodes.model.keys import internlm2
from ...visionllm_nodes.model.visionllm_files import SOURCE, SPIECE, TOKENIZER, VisionFile, open_visionllm, unexpected
from ..checkpoints.identify import is_visionllm
from ..checkpoints.quantization import FORMATS, NotFiniteError, Quantization
from ..checkpoints.tensor_files import CONFIG, TensorFile, WrongFileError, describe_path, open_tensors
from .output_files import (
    DEFAULT_FORMAT,
    CannotWriteError,
    ConversionResult,
    Output,
    Progress,
    plain_forms,
    plan_output,
    source_notes,
    stem,
    target_path,
    write,
)

EDITING_UNET = "ip2p.sd_unet."  # diffusers' names, 8 input channels
STOCK = (
    "sd.sd_unet.",
    "sd.sd_vae.",
    "sd.sd_text_encoder.",
    "ip2p.sd_vae.",
    "ip2p.sd_text_encoder.",
)  # as Stable Diffusion 1.5 has them


def is_one(source: Path) -> bool:
    """Whether `convert` is for this source. Raises WrongFile where it cannot be opened."""
    return source.exists() and is_visionllm(open_tensors(source).shapes)


def convert(
    source: Path | str,
    target: Path | str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ConversionResult:
    """Writes `source`, a published folder or file, as one .safetensors, and its UNet as a second one beside it; says what was written.

    `target` is a file or a folder (the current one by default). `format`, of the language model's matrices: one of `FORMATS`, int8 by default;
    everything else becomes float16, or bfloat16 where a value is too large for that. The files appear whole or not at all, and memory stays
    within about a gigabyte whatever the model's size. `progress` may raise to stop.
    Raises WrongFile for a source that cannot serve, CannotWrite for a target that will not do, OSError where the disk has no room.
    """
    source = Path(source)
    format = format or DEFAULT_FORMAT
    if format not in FORMATS:
        raise CannotWriteError(f"the format is {format!r}, expected is one of {', '.join(FORMATS)}")
    if not source.exists():
        raise WrongFileError(f"there is no {source.absolute()}: name a checkpoint's folder or a file")
    opened = open_visionllm(source)
    try:
        outputs, notes = _plan(opened, Path(target) if target is not None else Path.cwd(), format, overwrite)
        return write(outputs, progress, notes)
    except NotFiniteError as error:
        raise WrongFileError(f"{describe_path(source)} is damaged: {error}. Download it again.") from error


def _plan(opened: VisionFile, target: Path, format: str, overwrite: bool) -> tuple[list[Output], tuple[str, ...]]:
    """The files to write, and what to say of them."""
    file, quantization = opened.file, FORMATS[format]
    if opened.is_quantised:
        raise WrongFileError(
            f"{describe_path(file.path)} holds weights in 8 bits already: convert the published checkpoint, from {SOURCE}."
        )
    tokenizer = torch.frombuffer(bytearray(opened.tokenizer().model), dtype=torch.uint8)
    path = target_path(file.path, target, f"{stem(file.path)}_{format}.safetensors", overwrite)
    unet_path = path.with_name(f"{path.stem.removesuffix(f'_{format}')}_instructpix2pix.safetensors")
    unet = _host_unet(file)
    if unet:
        target_path(file.path, unet_path, "", overwrite)

    used = {name for source in opened.sources().values() for name in source.names}
    names = {name: name for name in file.shapes if name in used}  # in the file's order
    matrices = _quantised(opened, quantization) if quantization else set()

    def again() -> TensorFile:
        return open_tensors(file.path)

    forms = dict.fromkeys(matrices, quantization) | plain_forms(again, [*(names.keys() - matrices), *unet.values()])
    language = opened.parts["language"]
    sizes = f"{language.config.layers} layers, width {language.config.width}"
    makes = "an InternLM2" if language.names is internlm2 else "of LLaMA's family"
    told = {**opened.told, TOKENIZER: opened.tokenizer_told()}
    outputs = [
        plan_output(
            path,
            f"VisionLLM v2 (language model of {sizes}) in {format}",
            "visionllm",
            {
                **source_notes("VisionLLM v2", file.path, SOURCE),
                CONFIG: json.dumps(told),
                "quantization": quantization.format if quantization else "none",
                "license": f"Apache-2.0, as VisionLLM's repository states it for its code; the language model is {makes}",
            },
            again,
            names,
            forms,
            {SPIECE: tokenizer},
        )
    ]
    if unet:
        title = "InstructPix2Pix UNet that VisionLLM v2 trained"
        licence = "none stated; it was trained from Stable Diffusion 1.5's"
        metadata = {**source_notes(title, file.path, SOURCE), "license": licence}
        outputs.append(plan_output(unet_path, title, "diffusion_models", metadata, again, unet, forms))
    return outputs, _notes(opened, forms, {*names, *unet.values()})


def _quantised(opened: VisionFile, quantization: Quantization) -> set[str]:
    """The published names of the language model's weights that are kept in 8 bits; its own names are LLaMA's, whatever make it is of."""
    return {
        name
        for ours, source in opened.parts["language"].sources().items()
        if quantization.takes(f"model.{ours}")
        for name in source.names
    }


def _host_unet(file: TensorFile) -> dict[str, str]:
    """The host's names of the tensors of the UNet that edits -> the published ones; none where the checkpoint has no such UNet.

    Raises WrongFile where the host would not take it for InstructPix2Pix, or a tensor is missing.
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
            f"{describe_path(file.path)}: the UNet {EDITING_UNET}* is not InstructPix2Pix's of Stable Diffusion 1.5. It comes from {SOURCE}."
        )
    wanted = UNetModel(**config.unet_config, device="meta", operations=comfy.ops.disable_weight_init).state_dict()
    found, expected = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (given, wanted))
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise WrongFileError(
            f"{describe_path(file.path)}: its UNet {EDITING_UNET}* is incomplete or damaged: {len(wrong)} tensors are missing, unknown or of "
            f"another shape, the first is {wrong[0]} in ComfyUI's names. Download it again."
        )
    return names


def _diffusers_names(names: Mapping) -> dict[str, str]:
    """diffusers' names of a UNet's tensors -> the host's, by the UNet's blocks as the names tell them."""

    def count(describe_path: str) -> int:
        return comfy.model_detection.count_blocks(names, f"{describe_path}.{{}}.")

    def depths(side: str, blocks: list[int]) -> list[int]:
        return [
            count(f"{side}_blocks.{level}.attentions.{block}.transformer_blocks")
            for level, many in enumerate(blocks)
            for block in range(many)
        ]

    blocks = [count(f"down_blocks.{level}.resnets") for level in range(count("down_blocks"))]
    return comfy.utils.unet_to_diffusers(
        {
            "num_res_blocks": blocks,
            "channel_mult": blocks,
            "transformer_depth": depths("down", blocks),
            "transformer_depth_middle": count("mid_block.attentions.0.transformer_blocks"),
            "transformer_depth_output": depths("up", [many + 1 for many in reversed(blocks)])[::-1],
        }
    )


def _notes(opened: VisionFile, forms: Mapping[str, Quantization | torch.dtype], kept: set[str]) -> tuple[str, ...]:
    shapes = opened.file.shapes
    stock = [name for name in shapes if name.startswith(STOCK)]
    stray = [name for name in unexpected(opened) if name not in kept]
    twice = len(shapes.keys() - kept - {SPIECE}) - len(stock) - len(stray)
    large = [name for name, form in forms.items() if form is torch.bfloat16]
    size = 2 * sum(math.prod(shapes[name]) for name in stock) / 1e9
    told = {
        f"Left out: Stable Diffusion 1.5 as it is published (UNet, text encoders, VAEs: {len(stock)} tensors, {size:.1f} GB in 16 bits); "
        "ComfyUI loads it from models/checkpoints.": stock,
        f"Left out: {twice} tensors that are second names of others, or never needed.": twice,
        f"Left out: {len(stray)} tensors that no part of the model reads, the first is {stray[:1]}.": stray,
        f"In bfloat16, because their values are too large for float16: {len(large)} tensors, the first is {large[:1]}.": large,
    }
    return tuple(text for text, there in told.items() if there)
