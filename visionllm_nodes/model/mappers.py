"""The language model's 64 states of [GEN] or [EDIT] -> the context of Stable Diffusion 1.5 or InstructPix2Pix.

Source: VisionLLMv2/visionllmv2/model/stable_diffusion, instruct_pix2pix. It is MuLan's adapter with other sizes.
"""

from __future__ import annotations

from ...mulan.conditioning.adapter import AdapterShape, LanguageAdapter

MapperConfig = AdapterShape


class Mapper(LanguageAdapter):
    """states [B, 64, text_width], behind the language model's final norm -> context [B, 77, 768]."""

    def __init__(self, config: MapperConfig, *, operations, dtype=None, device=None):
        super().__init__(config, dtype=dtype, device=device, operations=operations)
