"""What nodes share: validation, inputs of loaders and of generation, text under a node, model files and saved files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui
from server import PromptServer

from ..mulan.checkpoints.tensor_files import INDEX_NAMES, SINGLE_NAMES, fingerprint


def valid(check: Callable, *values) -> bool | str:
    """For `validate_inputs`: True, or what `check(*values)` has against them. A connected value is not there yet (None), it is checked later."""
    return True if any(value is None for value in values) else passes(check, *values)


def passes(check: Callable, *values, **named) -> bool | str:
    """The same where `check` knows itself what None means."""
    try:
        check(*values, **named)
    except (OSError, ValueError) as error:
        return str(error)
    return True


def for_field(field: str, check: Callable, *values):
    """What `check(*values)` gives; its ValueError begins with the field."""
    try:
        return check(*values)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


PRECISIONS = {"default": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def precision_input(tooltip: str) -> io.Input:
    return io.Combo.Input(
        "precision", options=list(PRECISIONS), default="default", optional=True, advanced=True, tooltip=tooltip
    )


def device_input() -> io.Input:
    """Its value goes through `device_of`."""
    return io.Combo.Input(
        "device",
        options=["default", "cpu"],
        default="default",
        optional=True,
        advanced=True,
        tooltip="cpu keeps the model in system memory and runs it there: slow, but uses no VRAM.",
    )


def device_of(value: str) -> str | None:
    """What the library's loading functions take."""
    return "cpu" if value == "cpu" else None


def writing_inputs(limit: int, most: int) -> list[io.Input]:
    """`limit`: the default of max_tokens, `most`: its maximum."""
    return [
        io.Int.Input(
            "max_tokens",
            default=limit,
            min=1,
            max=most,
            optional=True,
            tooltip="The maximum length of the answer in tokens. A short word is about one token.",
        ),
        io.Float.Input(
            "temperature",
            default=0.0,
            min=0.0,
            max=2.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="0 is greedy and deterministic; higher values are more random.",
        ),
        io.Float.Input(
            "top_p",
            default=0.9,
            min=0.01,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip=(
                "Nucleus sampling: samples only from the most likely tokens whose probabilities sum to "
                "top_p. Used when temperature is above 0."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            optional=True,
            advanced=True,
            tooltip="The random seed used for sampling. Used when temperature is above 0.",
        ),
    ]


def show(node: type[io.ComfyNode], text: str, record: str | None = None) -> ui.PreviewText:
    """For `NodeOutput(ui=...)`; the node's schema must have ``io.Hidden.unique_id``. `record`: what the history gets instead of the text."""
    show_meanwhile(node, text)
    return ui.PreviewText(text if record is None else record)


def show_meanwhile(node: type[io.ComfyNode], text: str) -> None:
    """Below the node in the editor, while it works."""
    PromptServer.instance.send_progress_text(text, node.hidden.unique_id)


def names(kind: str) -> list[str]:
    """What models/<kind> holds; a checkpoint of several files, or with its configuration beside it, appears once, as its folder."""
    listed = folder_paths.get_filename_list(kind)
    parents = {str(Path(name).parent) for name in listed} - {"."}
    folders = {parent for parent in parents if _checkpoint_folder(kind, parent)}
    return sorted({name for name in listed if str(Path(name).parent) not in folders} | folders)


def locate(kind: str, name: str, source: str) -> Path:
    """The file or folder of a name in `names`. Raises FileNotFoundError that says where it was looked for and where to get it."""
    if _is_known(kind, name):
        return _checkpoint_folder(kind, name) or Path(folder_paths.get_full_path_or_raise(kind, name))
    folders = " or ".join(folder_paths.get_folder_paths(kind))
    raise FileNotFoundError(
        f"{name!r} is not in {folders}. Get it from {source}, put it there and press R in the editor."
    )


def stamp(kind: str, name: str | None) -> str:
    """Size and time of every file behind a name; empty where there is none."""
    if not name or not _is_known(kind, name):
        return ""
    return fingerprint(_checkpoint_folder(kind, name) or Path(folder_paths.get_full_path_or_raise(kind, name)))


def _is_known(kind: str, name: str) -> bool:
    """Also by the name of its file where its folder is listed: graphs that were saved before its configuration came may have that."""
    return name in names(kind) or name in folder_paths.get_filename_list(kind)


def _checkpoint_folder(kind: str, name: str) -> Path | None:
    for root in folder_paths.get_folder_paths(kind):
        folder = Path(root, name)
        single = SINGLE_NAMES if (folder / "config.json").is_file() else ()
        if any((folder / file).is_file() for file in (*INDEX_NAMES, *single)):
            return folder
    return None


OUTPUT_MARK = " [output]"  # ComfyUI's own mark for a file in the output folder


@dataclass(frozen=True)
class SavedFiles:
    """`folder` of the output folder, the files' `suffix`, and the display name of the node that saves them."""

    folder: str
    suffix: str
    saver: str

    def listed(self) -> dict[str, Path]:
        """What the loading node offers: name -> file, of the output folder with ComfyUI's mark, and of the input folder."""
        found = {}
        for root, folder, mark in (
            (folder_paths.get_output_directory(), self.folder, OUTPUT_MARK),
            (folder_paths.get_input_directory(), "", ""),
        ):
            for name in folder_paths.recursive_search(str(Path(root, folder)))[0]:
                if name.lower().endswith(self.suffix):
                    found[Path(folder, name).as_posix() + mark] = Path(root, folder, name)
        return dict(sorted(found.items()))

    def locate(self, name: str) -> Path:
        """The file of a name in `listed`. Raises FileNotFoundError that says where it was looked for."""
        found = self.listed().get(name)
        if found is None:
            raise FileNotFoundError(
                f"file: {name!r} is neither in {Path(folder_paths.get_output_directory(), self.folder)} nor in "
                f"{folder_paths.get_input_directory()}. Save it with {self.saver}, or copy it there, and press R in the editor."
            )
        return found

    def next(self, prefix: str) -> tuple[Path, str]:
        """The next free file for a `filename_prefix` (subfolders and %year%... as in Save Image), and its name in `listed`."""
        root = Path(folder_paths.get_output_directory(), self.folder)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, str(root))
        file = f"{name}_{counter:05}_{self.suffix}"
        return Path(folder, file), Path(self.folder, subfolder, file).as_posix() + OUTPUT_MARK
