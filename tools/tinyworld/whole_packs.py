"""Tiny models whose pack is the very file that ComfyUI loads, and where it lists them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WholePack:
    pack: Path
    name: str  # below ComfyUI's models folder

    def expand(self, models: Path) -> Path:
        """Write the file, unless the very same is there."""
        target = Path(models) / self.name
        content = self.pack.read_bytes()
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(target.name + ".unfinished")
            unfinished.write_bytes(content)
            unfinished.replace(target)
        return target


INTERNVL = WholePack(Path(__file__).with_name("tiny_internvl.safetensors"), "internvl/tiny_internvl_vision.safetensors")
VISIONLLM = WholePack(
    Path(__file__).parents[1] / "tinyworld_visionllm" / "tiny_visionllm.safetensors",
    "visionllm/tiny_visionllm.safetensors",
)
CHAT = WholePack(
    Path(__file__).with_name("tiny_internvl_chat.safetensors"), "internvl_chat/tiny_internvl_chat.safetensors"
)
