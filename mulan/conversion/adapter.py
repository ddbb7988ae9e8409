"""A MuLan adapter, published as .pth -> .safetensors with the same names and values."""

from __future__ import annotations

from ..checkpoints.identify import adapter_layout
from ..checkpoints.tensor_files import TensorFile, describe_path
from ..conditioning.model_files import ADAPTER_SOURCE, adapter_from_tensors
from .output_files import OWN_DTYPES, CannotWriteError, Converter, Plan, Target, make_metadata, plan_output, stem


def matches(file: TensorFile) -> bool:
    """Return whether it is a MuLan adapter."""
    return adapter_layout(file.shapes) is not None


def plan(source: TensorFile, target: Target, weight_format: str) -> Plan:
    """Plan the adapter's file; every tensor keeps its dtype, whatever the format: it is small beside the encoder."""
    opened, path = adapter_from_tensors(source), source.path
    if path.suffix.lower() == ".safetensors":
        raise CannotWriteError(
            f"{describe_path(path)} already is a MuLan adapter in .safetensors: put it into models/mulan as it is."
        )
    title = f"MuLan adapter for {opened.family.title}"
    metadata = make_metadata(
        title, path, ADAPTER_SOURCE, family=opened.family.name, license="none stated by MuLan's repository"
    )
    dtypes = {stored: source.read(stored).dtype for stored in opened.names.values()}
    return Plan(
        (plan_output(target.file(f"{stem(path)}.safetensors"), title, "mulan", metadata, source, opened.names, dtypes),)
    )


CONVERTER = Converter(matches, plan, default_format=OWN_DTYPES)
