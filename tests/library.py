"""Makes the library and the host importable in a plain Python process.

The repository itself never goes on sys.path: its nodes/ folder would hide the host's nodes.py.
"""
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_library() -> None:
    """Import ROOT/mulan under its own name, so that `import mulan.adapter` works from here on."""
    if "mulan" in sys.modules:
        return
    folder = ROOT / "mulan"
    spec = importlib.util.spec_from_file_location("mulan", folder / "__init__.py", submodule_search_locations=[str(folder)])
    library = importlib.util.module_from_spec(spec)
    sys.modules["mulan"] = library
    spec.loader.exec_module(library)


def open_host(folder: Path, *arguments: str) -> None:
    """Put ComfyUI's folder on sys.path and let ComfyUI read `arguments` (such as "--cpu") as its command line."""
    sys.path.insert(0, str(folder))
    import comfy.options
    comfy.options.enable_args_parsing()
    own, sys.argv = sys.argv, ["comfyui", *arguments]
    try:
        import comfy.cli_args  # noqa: F401  (reads sys.argv when it is imported)
    finally:
        sys.argv = own
