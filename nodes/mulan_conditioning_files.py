"""MuLan Save Conditioning and MuLan Load Conditioning: encode once, generate anywhere without the text encoder."""

from __future__ import annotations

import comfyui_version
from comfy_api.latest import io

from ..mulan import VERSION
from ..mulan.boundary.files import file_digest
from ..mulan.conditioning.saved_conditioning import load_conditioning, save_conditioning
from . import categories
from .checked_node import CheckedNode
from .common import SavedFiles, announce_files, show_text, validate

FILES = SavedFiles("conditioning", ".safetensors", "MuLan Save Conditioning")


class MulanSaveConditioning(CheckedNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanSaveConditioning",
            display_name="MuLan Save Conditioning",
            category=categories.MULAN,
            description=(
                "Saves a conditioning (an encoded prompt) to output/conditioning. Later workflows, on "
                "this or another machine, load it without the text encoder."
            ),
            search_aliases=[
                "save conditioning",
                "export conditioning",
                "save prompt embedding",
                "save encoded prompt",
                "cache conditioning",
                "cache text encoder",
                "prompt embeds",
                "保存条件",
                "保存提示词编码",
                "条件付けを保存",
                "조건 저장",
                "enregistrer le conditionnement",
                "Conditioning speichern",
                "сохранить кондишнинг",
                "guardar acondicionamiento",
            ],
            is_output_node=True,
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip=(
                        "The conditioning to save, including areas, masks and timestep ranges. A "
                        "conditioning with a ControlNet or hooks cannot be saved: they are objects, not "
                        "tensors."
                    ),
                ),
                io.String.Input(
                    "filename_prefix",
                    default="MuLan",
                    tooltip=(
                        "The prefix of the file name in output/conditioning; a counter is added. May "
                        "contain subfolders and %year%, %month%, %day%."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The conditioning, unchanged."),
                io.String.Output(
                    display_name="file", tooltip="The name of the saved file, as MuLan Load Conditioning lists it."
                ),
            ],
        )

    @classmethod
    def execute(cls, conditioning, filename_prefix) -> io.NodeOutput:
        versions = {"MuLan Nodes": VERSION, "ComfyUI": comfyui_version.__version__}
        saved = save_conditioning(FILES.free(filename_prefix.strip() or "MuLan"), conditioning, versions)
        announce_files()
        listed = FILES.name(saved.path)
        shown = show_text(f"{listed}\n{saved.describe()}")
        # As Save Image names its files, so that whoever reads the history can fetch this one from /view
        return io.NodeOutput(conditioning, listed, ui={**shown, "files": [FILES.served(saved.path)]})


class MulanLoadConditioning(CheckedNode):
    files = ("file",)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanLoadConditioning",
            display_name="MuLan Load Conditioning",
            category=categories.MULAN,
            description=(
                "Loads a conditioning that MuLan Save Conditioning saved. The workflow needs no text encoder."
            ),
            search_aliases=[
                "load conditioning",
                "import conditioning",
                "load prompt embedding",
                "load encoded prompt",
                "cached conditioning",
                "without text encoder",
                "prompt embeds",
                "加载条件",
                "加载提示词编码",
                "条件付けを読み込む",
                "조건 불러오기",
                "charger le conditionnement",
                "Conditioning laden",
                "загрузить кондишнинг",
                "cargar acondicionamiento",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list(FILES.listed()),
                    tooltip=(
                        "The file to load, saved by MuLan Save Conditioning: in output/conditioning or in "
                        "ComfyUI's input folder."
                    ),
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="If connected, the file must be for this model's family. The model is not changed.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The conditioning, exactly as saved."),
                io.String.Output(
                    display_name="info",
                    tooltip=(
                        "What the file holds: prompts, model family, shapes, and the text encoder and "
                        "adapter it was made with."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file):
        """Reject a damaged file before the run starts; such files are small, so the whole file is read."""
        return validate(lambda name: load_conditioning(FILES.locate(name)), file)

    @classmethod
    def fingerprint_inputs(cls, file, model=None):
        return file_digest(FILES.locate(file))

    @classmethod
    def execute(cls, file, model=None) -> io.NodeOutput:
        loaded = load_conditioning(FILES.locate(file))
        if model is not None:
            loaded.check_model(model)
        info = loaded.describe()
        return io.NodeOutput(loaded.conditioning, info, ui=show_text(info))
