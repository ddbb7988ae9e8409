"""What the nodes share: validation, common inputs, text in a node, model files and saved files."""

from __future__ import annotations

import itertools
import os
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import folder_paths
import torch
from comfy_api.latest import io
from server import PromptServer

from ..mulan.boundary.files import check_file_name, naming
from ..mulan.checkpoints.tensor_files import INDEX_NAMES, SINGLE_NAMES, fingerprint
from ..mulan.conditioning.prompt_memory import PromptMemory
from .readable_folders import check_readable

Result = TypeVar("Result")

# --- validation ---


def validate(check: Callable, *values, field: str = "") -> bool | str:
    """Return True, or the message of the error `check(*values)` raises, with `field` in front: for `validate_inputs`.

    A connected input is None before the graph runs. Nothing is checked then; `execute` has to check again.
    """
    if any(value is None for value in values):
        return True
    return validation_result(with_field_name, field, check, *values)


def validation_result(check: Callable, *values, **named) -> bool | str:
    """Do the same for a `check` that handles connected inputs (None) itself."""
    try:
        check(*values, **named)
    except (OSError, ValueError) as error:
        return str(error)
    return True


def with_field_name(field: str, check: Callable[..., Result], *values) -> Result:
    """Return `check(*values)`; put the name of the input in front of its error's message."""
    try:
        return check(*values)
    except (OSError, ValueError) as error:
        if not field:
            raise
        raise ValueError(f"{field}: {error}") from error


# --- inputs ---

PRECISIONS = {"default": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def precision_input(tooltip: str) -> io.Input:
    """Return the input `precision`; look its value up in PRECISIONS."""
    return io.Combo.Input(
        "precision", options=list(PRECISIONS), default="default", optional=True, advanced=True, tooltip=tooltip
    )


def device_input() -> io.Input:
    """Return the input `device`; pass its value through `device_of`."""
    return io.Combo.Input(
        "device",
        options=["default", "cpu"],
        default="default",
        optional=True,
        advanced=True,
        tooltip="cpu keeps the model in system memory and runs it there: slow, but uses no VRAM.",
    )


def device_of(value: str) -> str | None:
    """Return the `device` argument of the library's loading functions."""
    return "cpu" if value == "cpu" else None


def sampling_inputs(max_tokens: int, limit: int) -> list[io.Input]:
    """Return the inputs of text generation; `max_tokens` is by default as given and at most `limit`."""
    return [
        io.Int.Input(
            "max_tokens",
            default=max_tokens,
            min=1,
            max=limit,
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


# --- what the editor is told ---


TEXT_EVENT, TEXT_OUTPUT = "mulan_nodes.text", "mulan_text"  # as in web/results.js
FILES_EVENT = "mulan_nodes.files"  # as in web/model_files.js


def show_text(text: str, record: str | None = None) -> dict:
    """Return what goes into `NodeOutput(ui=...)` to show `text` in the node until its next run.

    The history gets `record`, if given, as the node's text.
    """
    return {"text": (text if record is None else record,), TEXT_OUTPUT: (text,)}


def show_progress(node: type[io.ComfyNode], text: str) -> None:
    """Show `text` in the node while it runs, to the client that asked. Needs ``io.Hidden.unique_id`` in the schema."""
    _tell_client(TEXT_EVENT, {"node": node.hidden.unique_id, "text": text})


def announce_files() -> None:
    """Tell the client that asked for the run that there are new files, so that its nodes list them."""
    _tell_client(FILES_EVENT, {})


def _tell_client(event: str, data: dict) -> None:
    """Send an event of web/*.js to the client that asked for the run."""
    server = PromptServer.instance
    if server.client_id is not None:  # to None it would go to every client
        server.send_sync(event, data, server.client_id)


# --- model files ---


def list_models(kind: str) -> list[str]:
    """Return the names of the models in models/<kind>.

    A checkpoint of several files, or with a config.json beside it, is listed once, as its folder.
    """
    listed = folder_paths.get_filename_list(kind)
    parents = {str(Path(name).parent) for name in listed} - {"."}
    folders = {parent for parent in parents if _checkpoint_folder(kind, parent)}
    return sorted({name for name in listed if str(Path(name).parent) not in folders} | folders)


def locate_model(kind: str, name: str, source: str) -> Path:
    """Return the file or folder of a name in `list_models`.

    Raises FileNotFoundError that says where it was looked for and that `source` has it.
    """
    path = _path_of(kind, name)
    if path is None:
        folders = " or ".join(folder_paths.get_folder_paths(kind))
        raise FileNotFoundError(
            f"{name!r} is not in {folders}. Get it from {source}, put it there and press R in the editor."
        )
    return path


def has_model(kind: str, name: str) -> bool:
    """Return whether models/<kind> has a model of this name."""
    return _path_of(kind, name) is not None


def fingerprint_model(kind: str, name: str | None) -> str:
    """Return a text that changes with size or time of any file of a model; empty if there is no such model."""
    path = _path_of(kind, name) if name else None
    return fingerprint(path) if path else ""


def _path_of(kind: str, name: str) -> Path | None:
    # A folder's files keep their own names, too: workflows saved before its config.json was there may have those.
    if name not in list_models(kind) and name not in folder_paths.get_filename_list(kind):
        return None
    return _checkpoint_folder(kind, name) or Path(folder_paths.get_full_path_or_raise(kind, name))


def _checkpoint_folder(kind: str, name: str) -> Path | None:
    for root in folder_paths.get_folder_paths(kind):
        folder = Path(root, name)
        single = SINGLE_NAMES if (folder / "config.json").is_file() else ()
        if any((folder / file).is_file() for file in (*INDEX_NAMES, *single)):
            return folder
    return None


def prompt_memory() -> PromptMemory:
    """Return where encoded prompts are kept: in a folder of the user directory that ComfyUI never serves."""
    return PromptMemory(Path(folder_paths.get_system_user_directory("mulan"), "prompts"))


# --- saved files ---

OUTPUT_MARK = " [output]"  # ComfyUI's own mark for a file in the output folder


@dataclass(frozen=True)
class SavedFiles:
    """The files that one node saves and another loads.

    They lie in `folder` of the output folder and end in `suffix`; `saver` is the saving node's display name.
    """

    folder: str
    suffix: str
    saver: str

    def listed(self) -> dict[str, Path]:
        """Return what the loading node offers, name -> file; names in the output folder have ComfyUI's mark."""
        files = {}
        for root, folder, mark in (
            (folder_paths.get_output_directory(), self.folder, OUTPUT_MARK),
            (folder_paths.get_input_directory(), "", ""),
        ):
            for name in folder_paths.recursive_search(str(Path(root, folder)))[0]:
                if name.lower().endswith(self.suffix):
                    files[Path(folder, name).as_posix() + mark] = Path(root, folder, name)
        return dict(sorted(files.items()))

    def locate(self, name: str) -> Path:
        """Return the file of a name in `listed`. Raises FileNotFoundError that says where it was looked for."""
        file = self.listed().get(name)
        if file is None:
            raise FileNotFoundError(
                f"file: {name!r} is neither in {Path(folder_paths.get_output_directory(), self.folder)} nor in "
                f"{folder_paths.get_input_directory()}. Save it with {self.saver}, or copy it there, and press R "
                "in the editor."
            )
        with_field_name("file", check_readable, [file])
        return file

    def free(self, prefix: str) -> Iterator[Path]:
        """Return the free files for a `filename_prefix` as in Save Image, in order: what WholeFile takes.

        Raises ValueError for what cannot be a name there, and where its folder cannot be made.
        """
        return with_field_name("filename_prefix", self._free, prefix)

    def name(self, file: Path) -> str:
        """Return the name in `listed` of a saved file."""
        below = os.path.relpath(os.path.realpath(file), os.path.realpath(self._root))
        return Path(self.folder, below).as_posix() + OUTPUT_MARK

    def served(self, file: Path) -> dict[str, str]:
        """Return how a saved file is asked for at ComfyUI's /view."""
        name = Path(self.name(file).removesuffix(OUTPUT_MARK))
        return {"filename": name.name, "subfolder": name.parent.as_posix(), "type": "output"}

    def _free(self, prefix: str) -> Iterator[Path]:
        check_file_name(f"{prefix}_00000_{self.suffix}")
        prefix = os.path.normpath(prefix)
        target = Path(self._root, prefix)
        inside = folder_paths.is_within_directory(str(self._root), str(target.parent))
        if not inside or os.path.basename(prefix) in ("", ".", ".."):
            raise ValueError(
                f"{reprlib.repr(prefix)} is not the name of a file below {self._root}. Name one, without '..'"
            )
        with naming(target):
            folder, name, counter, *_ = folder_paths.get_save_image_path(prefix, str(self._root))
        return (Path(folder, f"{name}_{number:05}_{self.suffix}") for number in itertools.count(counter))

    @property
    def _root(self) -> Path:
        return Path(folder_paths.get_output_directory(), self.folder)
