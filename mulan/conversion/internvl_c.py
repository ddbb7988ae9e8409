"""InternVL-C's single internvl_c_13b_224px.pth -> two files, as of the published folder: text encoder, vision side."""

from __future__ import annotations

from ..checkpoints.tensor_files import TensorFile
from ..conditioning.model_files import text_encoder_from_tensors
from ..internvl import internvl_c
from .output_files import Converter, Plan, Target
from .text_encoder import plan_internvl


def matches(file: TensorFile) -> bool:
    """Return whether it is InternVL-C's single file."""
    return internvl_c.is_internvl_c(file.shapes)


def plan(source: TensorFile, target: Target, weight_format: str) -> Plan:
    """Plan the text encoder's file and the vision side's."""
    return plan_internvl(source, text_encoder_from_tensors(internvl_c.as_published(source)), target, weight_format)


CONVERTER = Converter(matches, plan)
