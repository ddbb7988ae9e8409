"""The names a loader offers, and the files behind them."""
from __future__ import annotations

from pathlib import Path

import folder_paths

from ..mulan.tensor_files import INDEX_NAMES


def names(kind: str) -> list[str]:
    """What models/<kind> holds; a sharded checkpoint appears once, as its folder."""
    listed = folder_paths.get_filename_list(kind)
    parents = {str(Path(name).parent) for name in listed} - {"."}
    sharded = {parent for parent in parents if _sharded_folder(kind, parent)}
    return sorted({name for name in listed if str(Path(name).parent) not in sharded} | sharded)


def locate(kind: str, name: str, source: str) -> Path:
    """The file or folder of a name in `names`. Raises FileNotFoundError that says where it was looked for and where to get it."""
    if name in names(kind):
        return _sharded_folder(kind, name) or Path(folder_paths.get_full_path_or_raise(kind, name))
    folders = " or ".join(folder_paths.get_folder_paths(kind))
    raise FileNotFoundError(f"{name!r} is not in {folders}. Get it from {source}, put it there and press R in the editor.")


def stamp(kind: str, name: str | None) -> str:
    """Size and time of every file behind a name; empty where there is none."""
    if not name or name not in names(kind):
        return ""
    folder = _sharded_folder(kind, name)
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder else [Path(folder_paths.get_full_path_or_raise(kind, name))]
    return " ".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


def _sharded_folder(kind: str, name: str) -> Path | None:
    for root in folder_paths.get_folder_paths(kind):
        folder = Path(root, name)
        if any((folder / index).is_file() for index in INDEX_NAMES):
            return folder
    return None
