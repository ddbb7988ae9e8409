"""Goldens, and the table of how close we came to them."""

from __future__ import annotations

import json
import re
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.tests.parity import mulan_recipe
from mulan_nodes.tests.parity.visionllm_case import Case, listed

HERE = Path(__file__).parent

TOLERANCE = 2e-5

_seen: dict[str, tuple[int, float]] = {}


@pytest.fixture(scope="session")
def goldens(request) -> Path:
    """MuLan's goldens: the folder given by --goldens (or its `mulan` folder)."""
    given = Path(request.config.getoption("--goldens") or HERE / "goldens")
    folder = given / "mulan" if (given / "mulan").is_dir() else given
    assert (folder / "set.json").is_file(), (
        f"no goldens of MuLan in {given}: expected is {given / 'mulan' / 'set.json'}"
    )
    return folder


@pytest.fixture(scope="session")
def vision_case(request):
    """vision_case("gdino_swin") -> that golden of VisionLLM v2, from --goldens (or its `visionllm` folder)."""
    given = Path(request.config.getoption("--goldens") or HERE / "goldens")
    folder = given / "visionllm" if (given / "visionllm").is_dir() else given
    assert (folder / "model.json").is_file(), (
        f"no goldens of VisionLLM v2 in {given}: expected is {given / 'visionllm' / 'model.json'}"
    )
    return lru_cache(maxsize=None)(lambda name: Case(folder, name))


@pytest.fixture(scope="session")
def vision_manifest():
    """vision_manifest("gdino_swin_t") -> {"tensors": {name: shape}, "aliases": ..., "int_buffers": ...} of a full-size
    part.
    """
    return lambda name: listed(HERE / "manifests" / "visionllm" / f"{name}.json")


@pytest.fixture(scope="session")
def facts(goldens):
    """facts("cases_sd15") -> the contents of that .json."""
    return lambda name: json.loads((goldens / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def manifest():
    """manifest("adapter_sd15") -> {name: shape} of every tensor of the full-size file."""

    def read(name: str) -> dict[str, tuple[int, ...]]:
        listed = json.loads((HERE / "manifests" / "mulan" / f"{name}.json").read_text(encoding="utf-8"))["tensors"]
        return {tensor: tuple(facts["shape"]) for tensor, facts in listed.items()}

    return read


@pytest.fixture(scope="session")
def recipe():
    """The module that makes upstream's weights: tensor(seed, component, name, shape), digest(array)."""
    return mulan_recipe


@pytest.fixture(scope="session")
def tensors(goldens):
    """tensors("file.safetensors#key[:n]") -> the golden tensor."""
    files = {}

    def get(reference: str) -> torch.Tensor:
        file, key, rows = re.fullmatch(r"([^#]+)#([^\[]+)(?:\[:(\d+)\])?", reference).groups()
        files.setdefault(file, load_file(goldens / file))
        return files[file][key][: int(rows) if rows else None]

    return get


@pytest.fixture(scope="session")
def checkpoint(goldens, tmp_path_factory) -> Path:
    """The tiny text encoder as a published folder: config, weights under upstream's names, tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "InternVL-tiny"
    shutil.copytree(goldens / "text_encoder", folder)
    shutil.copy(goldens / "tokenizer" / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="session")
def adapter_files(goldens, facts, tmp_path_factory):
    """adapter_files(case) -> the tiny adapter of a family as a .safetensors; of SDXL four, by variant:
    adapter_files("sdxl_embed_attnpool").
    """

    def weights_of(case: str) -> dict[str, torch.Tensor]:
        if not case.startswith("sdxl_"):
            listed = facts(f"cases_{case}")["adapter_weights"]
            names = [name.split(" ")[0] for name in (listed if isinstance(listed, list) else [listed])]
            return {
                key: t
                for name in names
                if name.endswith(".safetensors")
                for key, t in load_file(goldens / name).items()
            }
        attention = load_file(goldens / "weights" / "sdxl_embed_attnpool_tiny.safetensors")
        text = load_file(goldens / "weights" / "sdxl_noembed_textproj_tiny.safetensors")
        embedding = {key: t for key, t in attention.items() if key.startswith("add_embedding.")}
        chosen = attention if case.endswith("attnpool") else text
        return {key: t for key, t in chosen.items() if key not in embedding} | (
            embedding if "noembed" not in case else {}
        )

    made = {}

    def get(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("adapter") / f"{case}.safetensors"
            save_file(weights_of(case), made[case])
        return made[case]

    return get


@pytest.fixture(scope="session")
def full_size(facts, manifest, recipe):
    """full_size("sd15") -> (its entry in realdims.json, published tensors, input(key) -> tensor)."""

    def get(name: str):
        entry = next(case for case in facts("realdims")["cases"] if case["adapter"] == name)
        published = {
            tensor: torch.from_numpy(recipe.tensor(entry["seed"], entry["recipe_component"], tensor, shape))
            for tensor, shape in manifest(f"adapter_{name}").items()
        }

        def given(key: str) -> torch.Tensor:
            component, tensor, shape = re.search(r"\('([^']+)', '([^']+)', (\[[^\]]+\])\)", entry[key]).groups()
            return torch.from_numpy(recipe.tensor(entry["seed"], component, tensor, json.loads(shape)))

        return entry, published, given

    return get


@pytest.fixture(scope="session")
def whole(goldens, close, recipe):
    """whole(ours, golden entry): the stored rows within tolerance, and the fingerprint of all rows."""

    def check(ours: torch.Tensor, golden: dict):
        assert list(ours.shape) == golden["shape"]
        file, key = golden["stored"].split("#")
        rows = golden.get("stored_rows")
        close(ours[0] if rows in ("all", None) else ours[0, rows], load_file(goldens / file)[key], file)
        for name, value in recipe.digest(ours.numpy()).items():
            assert torch.allclose(torch.tensor(value), torch.tensor(golden["digest"][name]), atol=1e-3, rtol=1e-4), name

    return check


@pytest.fixture(scope="session")
def close():
    """close(ours, golden, file): asserts the tolerance; the maximum per golden file goes to the table at the end."""

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
