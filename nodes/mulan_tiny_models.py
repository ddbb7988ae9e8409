"""MuLan Tiny Models: everything to draw a first image with, out of the pack itself."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..mulan.conditioning.clip import load_clip, negative_view
from ..mulan.conditioning.model_files import open_adapter
from ..mulan.conditioning.prompt_tokenizer import STYLES
from ..mulan.tiny_models.unpacking import (
    EMOJI_ADAPTER,
    EMOJI_CHECKPOINT,
    TEXT_ENCODER,
    TINY_MODELS,
    TinyModel,
    write_tiny_models,
)
from . import categories
from .checked_node import CheckedNode
from .common import announce_files, fingerprint_model, prompt_memory, show_progress, show_text


class MulanTinyModels(CheckedNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanTinyModels",
            display_name="MuLan Tiny Models",
            category=categories.MULAN,
            description=(
                "Writes the pack's tiny models into ComfyUI's models folders, offline and within seconds, and loads "
                "Stable Diffusion with MuLan from them. They draw 118 things, such as a lion or a rocket, 96 x 96 "
                "pixels, from their names in 110 languages: a first image without a download, and small models for "
                "trying every template."
            ),
            search_aliases=[
                "tiny models",
                "first image",
                "getting started",
                "example models",
                "demo models",
                "test models",
                "offline models",
                "without download",
                "small checkpoint",
                "try mulan",
                "tiny demo",
                "入门模型",
                "示例模型",
                "小型模型",
                "サンプルモデル",
                "小さなモデル",
                "예제 모델",
                "작은 모델",
                "petits modèles",
                "Beispielmodelle",
                "маленькие модели",
                "modelos pequeños",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The tiny Stable Diffusion 1.5. It draws one thing, 96 x 96 pixels."),
                io.Clip.Output(tooltip="Encodes prompts in 110 languages: the name of a thing, such as 'rocket'."),
                io.Clip.Output(display_name="CLIP (negative)", tooltip="Encodes negative prompts; may be empty."),
                io.Vae.Output(tooltip="The tiny VAE, for VAE Decode and VAE Encode."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls):
        """Change when a file does, so that a deleted one is written again."""
        return [fingerprint_model(model.folder, model.name) for model in TINY_MODELS]

    @classmethod
    def execute(cls) -> io.NodeOutput:
        paths = {model: _path_of(model) for model in TINY_MODELS}
        bar = comfy.utils.ProgressBar(len(TINY_MODELS))

        def show(done: int, count: int, path: Path) -> None:
            bar.update_absolute(done, count)
            show_progress(cls, f"Writing {path.name} ({done + 1} of {count})")

        written = write_tiny_models(paths, show)
        if written:
            announce_files()
        model, _, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(paths[EMOJI_CHECKPOINT]), output_clip=False)
        clip = load_clip(paths[TEXT_ENCODER], open_adapter(paths[EMOJI_ADAPTER]), STYLES[0], memory=prompt_memory())
        result = _describe("Wrote", written) if written else _describe("Already there:", list(paths.values()))
        return io.NodeOutput(model, clip, negative_view(clip), vae, ui=show_text(result))


def _path_of(model: TinyModel) -> Path:
    """Return where the file is, or where ComfyUI's own downloads of its kind go."""
    found = folder_paths.get_full_path(model.folder, model.name)
    return Path(found or Path(folder_paths.get_folder_paths(model.folder)[0], model.name))


def _describe(done: str, files: list[Path]) -> str:
    """Say what was done with the files, and list them by folder."""
    names: dict[Path, list[str]] = {}
    for file in files:
        names.setdefault(file.parent, []).append(file.name)
    size = sum(file.stat().st_size for file in files) / 1e6
    lines = [f"{folder}: {', '.join(inside)}" for folder, inside in names.items()]
    return "\n".join([f"{done} {len(files)} files, {size:.0f} MB", *lines])
