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


def _sharded_folder(kind: str, name: str) -> Path | None:
    for root in folder_paths.get_folder_paths(kind):
        folder = Path(root, name)
        if any((folder / index).is_file() for index in INDEX_NAMES):
            return folder
    return None
