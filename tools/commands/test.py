"""Run the tests; further arguments go to pytest."""

import argparse
from pathlib import Path

FORWARDS = True
NEEDS_TINY_MODELS = True


def run(comfyui: Path, options: argparse.Namespace) -> int:
    import pytest

    from ..comfyui import ROOT

    tests = ROOT / "tests"
    given = (Path(argument.split("::")[0]).resolve() for argument in options.rest)
    everything = [] if any(path.exists() and path.is_relative_to(tests) for path in given) else [str(tests)]
    return pytest.main([f"--config-file={tests / 'pytest.ini'}", f"--rootdir={tests}", *options.rest, *everything])
