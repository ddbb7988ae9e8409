"""The trained tiny VisionLLM's file, and its place among ComfyUI's models."""

from __future__ import annotations

from pathlib import Path

from ..tinyworld.whole_packs import WholePack

PACK = Path(__file__).with_name("tiny_visionllm.safetensors")
VISIONLLM = WholePack(PACK, "visionllm/tiny_visionllm.safetensors")
