"""Get a model for this pack, or convert one that is here: run it with ComfyUI's own Python, from any folder.

python custom_nodes/mulan-nodes/convert.py "MuLan text encoder"
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

PACK = Path(__file__).absolute().parent  # not resolved: the pack may be a link in custom_nodes


def main() -> int:
    """Find ComfyUI, and let the library do what the command line says."""
    comfyui = next((path for path in (PACK.parents[1], *Path.cwd().parents, Path.cwd()) if _is_comfyui(path)), None)
    if comfyui is None:
        sys.exit(
            f"ComfyUI is neither above {PACK} nor above {Path.cwd()}: run this in the pack's folder in custom_nodes."
        )
    # The pack's own folders must not be taken for ComfyUI's: it has one named nodes, too
    sys.path[:] = [str(comfyui), *(path for path in sys.path if Path(path or ".").absolute() != PACK)]
    spec = importlib.util.spec_from_file_location(
        "mulan_nodes", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None  # noqa: S101
    sys.modules["mulan_nodes"] = importlib.util.module_from_spec(spec)
    command = importlib.import_module("mulan_nodes.mulan.conversion.__main__")
    return command.main(folders=_model_folders(comfyui), program=f"python {Path(__file__).name}", prompts=_prompts)


def _is_comfyui(folder: Path) -> bool:
    return (folder / "folder_paths.py").is_file() and (folder / "comfy").is_dir()


def _model_folders(comfyui: Path) -> Callable[[str], Path]:
    """Return what gives ComfyUI's own folder for a kind of model, made where there is none yet."""

    def folder(kind: str) -> Path:
        import folder_paths

        known = folder_paths.folder_names_and_paths.get(kind, ([], set()))[0]
        path = Path(known[0] if known else Path(folder_paths.models_dir, kind))
        path.mkdir(parents=True, exist_ok=True)
        return path

    def with_extra_paths(kind: str) -> Path:
        nonlocal extra
        if extra.is_file():
            from utils.extra_config import load_extra_path_config

            load_extra_path_config(str(extra))
            extra = comfyui  # once
        return folder(kind)

    extra = comfyui / "extra_model_paths.yaml"
    return with_extra_paths


def _prompts() -> Path:
    """Return where MuLan Loader keeps encoded prompts, in ComfyUI's own user directory."""
    import folder_paths

    return Path(folder_paths.get_system_user_directory("mulan"), "prompts")


if __name__ == "__main__":
    sys.exit(main())
