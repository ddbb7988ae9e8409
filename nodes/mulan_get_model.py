"""MuLan Get Model: download a published model from Hugging Face, converted while it comes."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..mulan.checkpoints.quantization import FORMATS
from ..mulan.checkpoints.tensor_files import fingerprint
from ..mulan.conversion.download_progress import DownloadProgress
from ..mulan.conversion.published import KNOWN, find_made, plan_download
from .checked_node import CheckedNode
from .common import show_progress, show_text


class MulanGetModel(CheckedNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanGetModel",
            display_name="MuLan Get Model",
            category="MuLan",
            description=(
                "Downloads a published model from Hugging Face and converts it while it comes, into the right "
                "folder of ComfyUI's models. Only what is needed is downloaded; after Stop or an error the next run "
                "goes on where it stopped. Nothing is downloaded before you run this node."
            ),
            search_aliases=[
                "download model",
                "download text encoder",
                "install models",
                "get models",
                "missing models",
                "huggingface download",
                "convert checkpoint",
                "quantize model",
                "下载模型",
                "モデルをダウンロード",
                "모델 다운로드",
                "télécharger un modèle",
                "Modell herunterladen",
                "скачать модель",
                "descargar modelo",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(KNOWN),
                    tooltip=(
                        "The model to download. MuLan needs its text encoder and an adapter for the family of your "
                        "checkpoint."
                    ),
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="int8",
                    tooltip=(
                        "How the weights are stored: int8 and fp8 take half the space of fp16. Adapters keep their own."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", tooltip="The file's name, as the loader lists it after you press R."
                ),
                io.String.Output(display_name="report", tooltip="What was downloaded and written, and where it is."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model, format):
        """Run again when the files are gone."""
        return [fingerprint(path) for path in find_made(model, format, _folder)] if model in KNOWN else []

    @classmethod
    def execute(cls, model, format) -> io.NodeOutput:
        made = find_made(model, format, _folder)
        if made:
            report = "\n".join(["Already there:", *map(str, made)])
            return io.NodeOutput(made[0].name, report, ui=show_text(cls, report))
        bar = comfy.utils.ProgressBar(1000)

        def progress(done: DownloadProgress) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(int(1000 * done.bytes / max(done.all_bytes, 1)))
            show_progress(cls, f"{plan}\n{done}")

        wanted = None if KNOWN[model].folders == ("mulan",) else format
        stop = comfy.model_management.throw_exception_if_processing_interrupted
        with plan_download(model, _folder, wanted, on_wait=stop) as download:
            plan = download.describe()
            show_progress(cls, plan)
            download.check_space()
            results = download.run(progress)
        files = [file for result in results for file in (result, *result.beside)]
        written = [f"{file.path}: {file.title}, {file.size / 1e9:.2f} GB" for file in files]
        notes = [note for result in results for note in result.notes]
        report = "\n".join([*written, *notes, "Press R in the editor, and choose it in the loader."])
        names = [file.path for file in files] or [path for each in download.conversions for path in each.present]
        return io.NodeOutput(names[0].name, report, ui=show_text(cls, report))


def _folder(kind: str) -> Path:
    path = Path(folder_paths.get_folder_paths(kind)[0])
    path.mkdir(parents=True, exist_ok=True)
    return path
