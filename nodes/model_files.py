"""The names a loader offers, and the files behind them."""
from __future__ import annotations

from pathlib import Path

import folder_paths

from ..mulan.tensor_files import INDEX_NAMES, SINGLE_NAMES, fingerprint


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
    raise FileNotFoundError(f"{name!r} is not in {folders}. Get it from {source}, put it there and press R in the editor.")


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
