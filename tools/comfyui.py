"""Makes the library and the host importable in a plain Python process.

The repository itself never goes on sys.path: its nodes/ folder would hide the host's nodes.py. It is there as a package, as it is for the
host, under the name `pack`: `pack.visionllm_nodes.model`. `mulan` is `pack.mulan` by a shorter name.
"""
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK = "pack"


class _SameModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """`pack.mulan.x` is the module `mulan.x`: one class of each error, whoever imports it."""

    def find_spec(self, name, path=None, target=None):
        if name == f"{PACK}.mulan" or name.startswith(f"{PACK}.mulan."):
            return importlib.machinery.ModuleSpec(name, self)
        return None

    def create_module(self, spec):
        module = importlib.import_module(spec.name.removeprefix(f"{PACK}."))
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self._own_spec  # the import system has just put the alias there


def load_library() -> None:
    """Import ROOT/mulan under its own name, and ROOT as the package `pack` without running the door that needs the host's server."""
    if "mulan" in sys.modules:
        return
    folder = ROOT / "mulan"
    spec = importlib.util.spec_from_file_location("mulan", folder / "__init__.py", submodule_search_locations=[str(folder)])
    library = importlib.util.module_from_spec(spec)
    sys.modules["mulan"] = library
    spec.loader.exec_module(library)
    pack = types.ModuleType(PACK)
    pack.__path__ = [str(ROOT)]
    sys.modules[PACK] = pack
    sys.meta_path.insert(0, _SameModules())


def write_tiny_models(models: Path) -> list[Path]:
    """Writes all tiny models below a ComfyUI's models folder and gives their files."""
    from mulan.tinyworld import pack, whole_packs
    from pack.visionllm_nodes.tinyworld.tiny_model import VISIONLLM

    return [*pack.expand(models), *(whole.expand(models) for whole in (whole_packs.INTERNVL, whole_packs.CHAT, VISIONLLM))]


def write_example_pictures(inputs: Path) -> list[Path]:
    """Writes the folder of pictures that templates read below a ComfyUI's input folder and gives its files."""
    from mulan.tinyworld import example_pictures

    return example_pictures.write(inputs / example_pictures.FOLDER)


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
