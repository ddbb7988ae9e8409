"""MuLan Save Conditioning and MuLan Load Conditioning: encode once, draw anywhere without the text encoder."""
from __future__ import annotations

import hashlib
from pathlib import Path

import comfyui_version
import folder_paths
from comfy_api.latest import io

from ..mulan import VERSION
from ..mulan.saved_conditioning import load_conditioning, save_conditioning
from .node_text import show

FOLDER = "conditioning"
SUFFIX = ".safetensors"
OUTPUT_MARK = " [output]"  # ComfyUI's own mark for a file in the output folder


def saved_files() -> dict[str, Path]:
    """What MuLan Load Conditioning offers: name -> file, of output/conditioning with ComfyUI's mark, and of the input folder."""
    found = {}
    for root, folder, mark in ((folder_paths.get_output_directory(), FOLDER, OUTPUT_MARK), (folder_paths.get_input_directory(), "", "")):
        for name in folder_paths.recursive_search(str(Path(root, folder)))[0]:
            if name.lower().endswith(SUFFIX):
                found[Path(folder, name).as_posix() + mark] = Path(root, folder, name)
    return dict(sorted(found.items()))


def locate(name: str) -> Path:
    """The file of a name in `saved_files`. Raises FileNotFoundError that says where it was looked for."""
    found = saved_files().get(name)
    if found is None:
        raise FileNotFoundError(f"{name!r} is neither in {Path(folder_paths.get_output_directory(), FOLDER)} nor in "
                                f"{folder_paths.get_input_directory()}. Save it with MuLan Save Conditioning, or copy it there, and press R in the editor.")
    return found


class MulanSaveConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanSaveConditioning",
            display_name="MuLan Save Conditioning",
            category="MuLan",
            description="Writes an encoded prompt to output/conditioning, so that later graphs, or another machine, need no text encoder.",
            search_aliases=["save conditioning", "export conditioning", "save prompt", "cache conditioning", "prompt embeds", "保存条件", "条件付けを保存"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="Any conditioning of texts, areas, masks and timestep ranges. One with a ControlNet or "
                                                              "hooks is refused: these are no data."),
                io.String.Input("filename_prefix", default="MuLan",
                                tooltip="The file's name in output/conditioning; a number follows. May have subfolders and %year%, %month%, %day%."),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The conditioning that came in."),
                io.String.Output(display_name="file", tooltip="The file's name as MuLan Load Conditioning lists it."),
            ],
        )

    @classmethod
    def execute(cls, conditioning, filename_prefix) -> io.NodeOutput:
        root = Path(folder_paths.get_output_directory(), FOLDER)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix.strip() or "MuLan", str(root))
        file = f"{name}_{counter:05}_{SUFFIX}"
        saved = save_conditioning(Path(folder, file), conditioning, {"MuLan Nodes": VERSION, "ComfyUI": comfyui_version.__version__})
        listed = Path(FOLDER, subfolder, file).as_posix() + OUTPUT_MARK
        return io.NodeOutput(conditioning, listed, ui=show(cls, f"{listed}\n{saved.describe()}"))


class MulanLoadConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanLoadConditioning",
            display_name="MuLan Load Conditioning",
            category="MuLan",
            description="Reads what MuLan Save Conditioning wrote. The graph needs no text encoder then.",
            search_aliases=["load conditioning", "import conditioning", "load prompt", "cached conditioning", "without text encoder", "prompt embeds",
                            "加载条件", "条件付けを読み込む"],
            has_intermediate_output=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input("file", options=list(saved_files()),
                               tooltip="A file that MuLan Save Conditioning wrote, in output/conditioning or in the input folder."),
                io.Model.Input("model", optional=True, tooltip="Connected, a file for another model family is refused. It is not changed."),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="What was saved, exactly."),
                io.String.Output(display_name="info", tooltip="What the file holds: prompts, family, shapes, and what it was made with."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file):
        """Such files are small, so they are read whole: a damaged one is told before the queue starts."""
        try:
            if file is not None:
                load_conditioning(locate(file))
        except (OSError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file, model=None):
        return hashlib.sha256(locate(file).read_bytes()).hexdigest()

    @classmethod
    def execute(cls, file, model=None) -> io.NodeOutput:
        loaded = load_conditioning(locate(file))
        if model is not None:
            loaded.check_model(model)
        info = loaded.describe()
        return io.NodeOutput(loaded.conditioning, info, ui=show(cls, info))
