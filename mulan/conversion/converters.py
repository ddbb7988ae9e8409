"""The converters, one per kind of source, and the one path that every conversion takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoints.identify import identify
from ..checkpoints.quantization import FORMATS, NotFiniteError
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path, open_streaming
from ..conditioning.model_files import ADAPTER_SOURCE, ENCODER_SOURCE
from . import adapter, internvl_c, internvl_chat, text_encoder, visionllm
from .output_files import CannotWriteError, ConversionResult, Plan, Progress, Target, place, write

CONVERTERS = (
    visionllm.CONVERTER,
    adapter.CONVERTER,
    internvl_chat.CONVERTER,
    internvl_c.CONVERTER,
    text_encoder.CONVERTER,
)


def convert(
    source: Path | str,
    target: Path | str | Callable[[str], Path] | None = None,
    weight_format: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ConversionResult:
    """Convert a published checkpoint to one or two .safetensors for ComfyUI; return what was written.

    `target` is a file, a folder (the current one by default), or what gives the folder of each folder below models/.
    `weight_format` is a key of `FORMATS`, for the large matrices: int8 by default; adapters keep their dtypes. The
    files appear whole or not at all, and memory stays within about a gigabyte whatever the model's size. `progress` may
    raise to stop.
    Raises WrongFileError for a source that no converter takes, CannotWriteError for a target or format that cannot be
    written, OSError where the disk has no room.
    """
    path = Path(source)
    with naming_damage(path):
        return write(plan_local(path, target, weight_format, overwrite), progress)


@contextmanager
def naming_damage(source: Path) -> Iterator[None]:
    """Raise WrongFileError, which names `source`, in place of NotFiniteError."""
    try:
        yield
    except NotFiniteError as error:
        raise WrongFileError(f"{describe_path(source)} is damaged: {error}. Download it again.") from error


def plan_local(
    source: Path, target: Path | str | Callable[[str], Path] | None, weight_format: str | None, overwrite: bool
) -> Plan:
    """Plan what `convert` writes. Raises what it does, and NotFiniteError: see `naming_damage`."""
    if not source.exists():
        raise WrongFileError(f"source not found: {source.absolute()}. Name a checkpoint's folder or file")
    if callable(target):
        somewhere = Target(source, target("text_encoders"), overwrite=True)
        return place(plan_conversion(open_streaming(source), somewhere, weight_format), source, target, overwrite)
    wanted = Target(source, Path(target) if target is not None else Path.cwd(), overwrite)
    return plan_conversion(open_streaming(source), wanted, weight_format)


def plan_conversion(file: TensorFile, target: Target, weight_format: str | None = None) -> Plan:
    """Plan the files of a checkpoint that is open, by the first converter that takes it; see `convert`.

    Raises WrongFileError, CannotWriteError and NotFiniteError.
    """
    if weight_format is not None and weight_format not in FORMATS:
        raise CannotWriteError(f"the format is {weight_format!r}, expected one of {', '.join(FORMATS)}")
    converter = next((each for each in CONVERTERS if each.matches(file)), None)
    if converter is None:
        raise WrongFileError(
            f"{describe_path(file.path)} is {identify(file.shapes)}; expected InternVL, from {ENCODER_SOURCE}, an "
            f"InternVL chat model or VisionLLM v2, from OpenGVLab on Hugging Face, or a MuLan adapter, from "
            f"{ADAPTER_SOURCE}."
        )
    return converter.plan(file, target, weight_format or converter.default_format)
