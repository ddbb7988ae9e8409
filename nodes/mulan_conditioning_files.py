"""MuLan Save Conditioning and MuLan Load Conditioning: encode once, draw anywhere without the text encoder."""

from __future__ import annotations

import hashlib

import comfyui_version
from comfy_api.latest import io

from ..mulan import VERSION
from ..mulan.conditioning.saved_conditioning import load_conditioning, save_conditioning
from .common import SavedFiles, show

FILES = SavedFiles("conditioning", ".safetensors", "MuLan Save Conditioning")


class MulanSaveConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanSaveConditioning",
            display_name="MuLan Save Conditioning",
            category="MuLan",
            description="Writes an encoded prompt to output/conditioning, so that later graphs, or another machine, need no text encoder.",
            search_aliases=[
                "save conditioning",
                "export conditioning",
                "save prompt",
                "cache conditioning",
                "prompt embeds",
                "保存条件",
                "条件付けを保存",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="Any conditioning of texts, areas, masks and timestep ranges. One with a ControlNet or "
                    "hooks is refused: these are no data.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="MuLan",
                    tooltip="The file's name in output/conditioning; a number follows. May have subfolders and %year%, %month%, %day%.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The conditioning that came in."),
                io.String.Output(display_name="file", tooltip="The file's name as MuLan Load Conditioning lists it."),
            ],
        )

    @classmethod
    def execute(cls, conditioning, filename_prefix) -> io.NodeOutput:
        file, listed = FILES.next(filename_prefix.strip() or "MuLan")
        saved = save_conditioning(file, conditioning, {"MuLan Nodes": VERSION, "ComfyUI": comfyui_version.__version__})
        return io.NodeOutput(conditioning, listed, ui=show(cls, f"{listed}\n{saved.describe()}"))


class MulanLoadConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanLoadConditioning",
            display_name="MuLan Load Conditioning",
            category="MuLan",
            description="Reads what MuLan Save Conditioning wrote. The graph needs no text encoder then.",
            search_aliases=[
                "load conditioning",
                "import conditioning",
                "load prompt",
                "cached conditioning",
                "without text encoder",
                "prompt embeds",
                "加载条件",
                "条件付けを読み込む",
            ],
            has_intermediate_output=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list(FILES.listed()),
                    tooltip="A file that MuLan Save Conditioning wrote, in output/conditioning or in the input folder.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connected, a file for another model family is refused. It is not changed.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="What was saved, exactly."),
                io.String.Output(
                    display_name="info",
                    tooltip="What the file holds: prompts, family, shapes, and what it was made with.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file):
        """Such files are small, so they are read whole: a damaged one is told before the queue starts."""
        try:
            if file is not None:
                load_conditioning(FILES.locate(file))
        except (OSError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file, model=None):
        return hashlib.sha256(FILES.locate(file).read_bytes()).hexdigest()

    @classmethod
    def execute(cls, file, model=None) -> io.NodeOutput:
        loaded = load_conditioning(FILES.locate(file))
        if model is not None:
            loaded.check_model(model)
        info = loaded.describe()
        return io.NodeOutput(loaded.conditioning, info, ui=show(cls, info))
