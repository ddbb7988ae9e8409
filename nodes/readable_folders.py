"""Which folders of this computer a graph may name: all of them, or ComfyUI's own only.

A graph can come from someone else: over the network, or in a shared workflow. Whoever runs the server can therefore
keep folder inputs and saved files inside ComfyUI's input, output and temp folders, links included. The switch is a
file in ComfyUI's system user folder, which no HTTP request can write.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ..mulan.boundary.files import parse_json

NAME = "only_comfyui_folders"


def settings_file() -> Path:
    """Return user/__mulan_nodes/settings.json, which need not exist: {"only_comfyui_folders": true}."""
    return Path(folder_paths.get_system_user_directory("mulan_nodes"), "settings.json")


def check_readable(paths: Iterable[Path]) -> None:
    """Raise ValueError for the first path that leads, by itself or by a link, to where nothing may be read."""
    if not _only_own_folders():
        return
    roots = [Path(root).resolve() for root in _own_folders()]
    for path in paths:
        resolved = path.resolve()
        if not any(resolved.is_relative_to(root) for root in roots):
            raise ValueError(
                f"{path} is outside of ComfyUI's input, output and temp folders, and {settings_file()} allows only "
                "those. Copy it to the input folder"
            )


def _own_folders() -> list[str]:
    return [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]


def _only_own_folders() -> bool:
    file = settings_file()
    try:
        settings = parse_json(file.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Mend or delete it") from error
    chosen = settings.get(NAME, False) if isinstance(settings, dict) else None
    if not isinstance(chosen, bool):
        raise ValueError(f'{file} must be {{"{NAME}": true}} or {{"{NAME}": false}}')
    return chosen
