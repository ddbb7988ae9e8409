"""The trained tiny VisionLLM's file, and its place among ComfyUI's models."""
from __future__ import annotations

from pathlib import Path

PACK = Path(__file__).with_name("tiny_visionllm.safetensors")


def expand(models: Path) -> list[Path]:
    """Puts the model where ComfyUI's loader lists it, below its models folder; it is written only where it is not there or another."""
    target = models / "visionllm" / PACK.name
    if not target.is_file() or target.stat().st_size != PACK.stat().st_size or target.read_bytes() != PACK.read_bytes():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".unfinished")
        unfinished.write_bytes(PACK.read_bytes())
        unfinished.replace(target)
    return [target]
