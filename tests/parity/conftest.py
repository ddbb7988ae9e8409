"""Goldens, and the table of how close we came to them."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TOLERANCE = 2e-5

_seen: dict[str, tuple[int, float]] = {}


@pytest.fixture(scope="session")
def goldens(request) -> Path:
    """MuLan's goldens: the folder given by --goldens (or its `mulan` folder)."""
    given = Path(request.config.getoption("--goldens") or HERE / "goldens")
    folder = given / "mulan" if (given / "mulan").is_dir() else given
    assert (folder / "set.json").is_file(), f"no goldens of MuLan in {given}: expected is {given / 'mulan' / 'set.json'}"
    return folder


@pytest.fixture(scope="session")
def close():
    """close(ours, golden, file): asserts the tolerance and keeps the maximum per golden file for the table at the end."""
    def check(ours: torch.Tensor, golden: torch.Tensor, file: str, tolerance: float = TOLERANCE):
        assert ours.shape == golden.shape, f"{file}: shape {tuple(ours.shape)}, the golden's is {tuple(golden.shape)}"
        difference = (ours.float() - golden.float()).abs().max().item()
        count, worst = _seen.get(file, (0, 0.0))
        _seen[file] = count + 1, max(worst, difference)
        assert difference <= tolerance, f"{file}: differs by {difference:.2e}, tolerance {tolerance:.0e}"
    return check


def pytest_terminal_summary(terminalreporter):
    if _seen:
        terminalreporter.section("parity with upstream, max abs difference")
        for file, (count, worst) in sorted(_seen.items()):
            terminalreporter.line(f"{file:34} {count:3} tensors  {worst:.1e}")
