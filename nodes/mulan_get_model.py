"""MuLan Get Model: a published model, downloaded from Hugging Face and converted while it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..mulan.checkpoints.quantization import FORMATS
from ..mulan.checkpoints.tensor_files import fingerprint
from ..mulan.conversion.converters import naming_damage, plan_local
from ..mulan.conversion.download_progress import DownloadProgress
from ..mulan.conversion.hub import check_name
from ..mulan.conversion.output_files import Progress, write
from ..mulan.conversion.published import KNOWN, find_made, plan_download
from . import categories
from .checked_node import CheckedNode
from .common import announce_files, list_models, locate_model, show_progress, show_text, validate
from .readable_folders import check_readable


class MulanGetModel(CheckedNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanGetModel",
            display_name="MuLan Get Model",
            category=categories.MULAN,
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
                "install mulan",
                "get mulan",
                "convert model",
                "download checkpoint",
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
                        "How the weights are stored: int8 and fp8 take half the space of fp16; int4 takes less than a "
                        "third and is less exact. Adapters keep their own."
                    ),
                ),
                io.String.Input(
                    "source",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Used in place of model: a folder or file of this computer to convert, or a repository of "
                        "Hugging Face as owner/name, owner/name@revision or owner/name/file."
                    ),
                ),
            ],
            outputs=[
                io.Combo.Output(
                    display_name="file",
                    tooltip="The file's name in the loader's list. Connect it to the loader's input for that file.",
                ),
                io.String.Output(display_name="report", tooltip="What was downloaded and written, and where it is."),
            ],
        )

    @classmethod
    def validate_inputs(cls, source=""):
        """Reject what is neither here nor the name of a repository; nothing is asked from the hub."""
        return validate(_check_source, source, field="source")

    @classmethod
    def fingerprint_inputs(cls, model="", format="int8", source="", **others):
        """Run again when the file is gone, or the local source changed."""
        source = (source or "").strip()
        if source:
            return fingerprint(Path(source)) if Path(source).exists() else ""
        if model not in KNOWN:
            return ""
        made = find_made(model, format, _listed)
        return fingerprint(_listed(KNOWN[model].folder)[made]) if made else ""

    @classmethod
    def execute(cls, model, format, source="") -> io.NodeOutput:
        source = source.strip()
        _check_source(source)
        made = None if source else find_made(model, format, _listed)
        if made:
            name, report = made, f"Already there: {_listed(KNOWN[model].folder)[made]}"
        elif source and Path(source).exists():
            name, report = cls._convert(Path(source), format)
        else:
            name, report = cls._download(source or model, format)
        return io.NodeOutput(name, report, ui=show_text(report))

    @classmethod
    def _convert(cls, source: Path, weight_format: str) -> tuple[str, str]:
        with naming_damage(source):
            plan = plan_local(source, _folder, weight_format, overwrite=True)
            missing = tuple(output for output in plan.outputs if not output.path.exists())
            lines = [f"{output.path}: already there" for output in plan.outputs if output not in missing]
            if missing:
                lines += write(replace(plan, outputs=missing), cls._progress(str(source))).lines()
                announce_files()
        return plan.outputs[0].path.name, "\n".join(lines)

    @classmethod
    def _download(cls, source: str, weight_format: str) -> tuple[str, str]:
        stop = comfy.model_management.throw_exception_if_processing_interrupted
        with plan_download(source, _folder, weight_format, on_wait=stop) as download:
            plan = download.describe()
            results = download.run(cls._progress(plan))
        if results:
            announce_files()
        return download.paths[0].name, "\n".join(line for result in results for line in result.lines()) or plan

    @classmethod
    def _progress(cls, plan: str) -> Callable[[Progress | DownloadProgress], None]:
        """Show the plan; return what moves the bar, shows how far the work is, and ends it after Stop."""
        bar = comfy.utils.ProgressBar(1000)
        show_progress(cls, plan)

        def progress(done: Progress | DownloadProgress) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(1000 * done.bytes // max(done.all_bytes, 1))
            show_progress(cls, f"{plan}\n{done}")

        return progress


def _check_source(source: str) -> None:
    path = source.strip()
    if not path:
        return
    if Path(path).exists():
        check_readable([Path(path)])
    else:
        check_name(path)


def _folder(kind: str) -> Path:
    """Return the folder for new models of a kind, the first that its loader looks into."""
    path = Path(folder_paths.get_folder_paths(kind)[0])
    path.mkdir(parents=True, exist_ok=True)
    return path


def _listed(kind: str) -> dict[str, Path]:
    return {name: locate_model(kind, name, "") for name in list_models(kind)}
