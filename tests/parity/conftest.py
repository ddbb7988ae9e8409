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
from mulan_nodes.tests.parity.golden_folder import MULAN_FILES, GoldenFolder, adapters, read
from mulan_nodes.tests.parity.visionllm_case import Case, listed

TOLERANCE = 2e-5
EMPTY = "got empty parameter set"  # what pytest says of a test that has no case

_seen: dict[str, tuple[int, float]] = {}
_folder = pytest.StashKey[GoldenFolder]()


def pytest_configure(config):
    config.stash[_folder] = GoldenFolder(config.getoption("--goldens"), config.getoption("--manifests"))
    for marker in (
        "golden(kind): `golden` is each VisionLLM golden of the kind",
        "task(key): `task` is each golden of a whole model whose .json has the key",
        "cases(*families, keys=()): `case` is each MuLan golden of the families; keys: what it names files under",
        "full_size(*families): `full` is each adapter of realdims.json of the families",
        "manifests(side, pattern): `manifest_name` is each manifest whose name begins so",
        "manifests_of(*prefixes): `manifest_name` is each VisionLLM manifest with tensors below all of the prefixes",
        "needs(side, *files): runs where these files are there",
    ):
        config.addinivalue_line("markers", marker)


def pytest_generate_tests(metafunc):
    folder = metafunc.config.stash[_folder]

    def each(argument, found, scope="module", **how):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, found, ids=str, scope=scope, **how)

    for mark in metafunc.definition.iter_markers():
        if mark.name == "golden":
            each("golden", folder.vision_cases(*mark.args), indirect=True)
        elif mark.name == "task":
            each("task", folder.vision_tasks(*mark.args))
        elif mark.name == "cases":
            each("case", folder.cases(mark.args, mark.kwargs.get("keys", ())))
        elif mark.name == "full_size":
            each("full", folder.full_sizes(mark.args))
        elif mark.name == "manifests":
            side, pattern = mark.args
            each("manifest_name", [name for name in folder.manifest_names(side) if re.match(pattern, name)])
        elif mark.name == "manifests_of":
            each("manifest_name", folder.manifests_of(*mark.args))


def pytest_collection_modifyitems(config, items):
    """A test whose golden is not in the folder does not run; the end of the report names what is missing."""
    folder = config.stash[_folder]

    def runs(item) -> bool:
        needed = [folder.lacks(*mark.args) for mark in item.iter_markers("needs")]
        return not any(needed) and not any(
            mark.kwargs.get("reason", "").startswith(EMPTY) for mark in item.iter_markers("skip")
        )

    left = {item: runs(item) for item in items}
    items[:] = [item for item, stays in left.items() if stays]
    config.hook.pytest_deselected(items=[item for item, stays in left.items() if not stays])


@pytest.fixture(scope="session")
def folder(request) -> GoldenFolder:
    """The folder that the goldens come from."""
    return request.config.stash[_folder]


@pytest.fixture(scope="session")
def goldens(folder) -> Path:
    """MuLan's goldens."""
    return folder.side("mulan")


@pytest.fixture(scope="session")
def vision_case(folder):
    """vision_case("gdino_swin") -> that golden of VisionLLM v2."""
    return lru_cache(maxsize=None)(lambda name: Case(folder.side("visionllm"), name))


@pytest.fixture(scope="module")
def golden(request, vision_case) -> Case:
    """Each golden of the kind that the test's marker names."""
    return vision_case(request.param)


@pytest.fixture(scope="session")
def vision_manifest(folder):
    """vision_manifest("gdino_swin_t") -> {"tensors": {name: shape}, "aliases": ..., "int_buffers": ...} of a full-size
    part.
    """
    return lambda name: listed(folder.manifest_file("visionllm", name))


@pytest.fixture(scope="session")
def facts(goldens):
    """facts("cases_sd15") -> the contents of that .json."""
    return lambda name: read(goldens / f"{name}.json")


@pytest.fixture(scope="session")
def manifest(folder):
    """manifest("adapter_sd15") -> {name: shape} of every tensor of the full-size file."""

    def tensors(name: str) -> dict[str, tuple[int, ...]]:
        listed = read(folder.manifest_file("mulan", name))["tensors"]
        return {tensor: tuple(facts["shape"]) for tensor, facts in listed.items()}

    return tensors


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
        if file not in files:
            files[file] = load_file(goldens / file)
        assert key in files[file], f"{goldens / file} has no tensor {key}, which the goldens name"
        return files[file][key][: int(rows) if rows else None]

    return get


@pytest.fixture(scope="session")
def checkpoint(goldens, tmp_path_factory) -> Path:
    """The tiny text encoder as a published folder: config, weights under upstream's names, tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "InternVL-tiny"
    folder.mkdir()
    for file in MULAN_FILES:
        shutil.copy(goldens / file, folder)
    return folder


@pytest.fixture(scope="session")
def adapter_files(goldens, facts, tmp_path_factory):
    """adapter_files("sd15") -> the tiny adapter of a case as a .safetensors; of SDXL also one of its variants:
    adapter_files("sdxl", "sdxl_embed_attnpool").
    """

    def weights_of(case: str, variant: str | None) -> dict[str, torch.Tensor]:
        told = facts(f"cases_{case}")
        files = {text: load_file(goldens / text.split(" ")[0]) for text in adapters(told) if ".safetensors" in text}
        if variant is None:
            return {key: t for tensors in files.values() for key, t in tensors.items()}
        own = files.get(told["adapter_weights"].get(variant))
        if own is not None:
            return own
        # Made of the parts of the others: upstream's two kinds of pooling, and the size embedding beside either.
        pooling = f"pool_caption_projection.{'positional_embedding' if 'attnpool' in variant else 'linear_1.weight'}"
        chosen = next(tensors for tensors in files.values() if pooling in tensors)
        parts = {key: t for tensors in files.values() for key, t in tensors.items() if key.startswith("add_embedding.")}
        kept = {key: t for key, t in chosen.items() if key not in parts}
        return kept if "noembed" in variant else kept | parts

    made = {}

    def get(case: str, variant: str | None = None) -> Path:
        if (case, variant) not in made:
            made[case, variant] = tmp_path_factory.mktemp("adapter") / f"{variant or case}.safetensors"
            save_file(weights_of(case, variant), made[case, variant])
        return made[case, variant]

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
    """close(ours, golden, file): asserts the tolerance; the maximum per golden file goes to the table at the end.

    Infinite values must stand in the same places. `columns`: the last dimension may be shorter in one of both, then the
    other has -inf there: names that are not in the prompt.
    """

    def check(ours: torch.Tensor, golden: torch.Tensor, file: str, tolerance: float = TOLERANCE, columns: bool = False):
        ours, golden = ours.float(), golden.float()
        if columns:
            width = max(ours.shape[-1], golden.shape[-1])
            ours, golden = (
                torch.nn.functional.pad(each, (0, width - each.shape[-1]), value=float("-inf"))
                for each in (ours, golden)
            )
        assert ours.shape == golden.shape, f"{file}: shape {tuple(ours.shape)}, the golden's is {tuple(golden.shape)}"
        for kind in (torch.isneginf, torch.isposinf, torch.isnan):
            assert torch.equal(kind(ours), kind(golden)), f"{file}: {kind.__name__} holds in other places"
        finite = golden.isfinite()
        difference = (ours[finite] - golden[finite]).abs().max().item() if finite.any() else 0.0
        count, worst = _seen.get(file, (0, 0.0))
        _seen[file] = count + 1, max(worst, difference)
        assert difference <= tolerance, f"{file}: differs by {difference:.2e}, tolerance {tolerance:.0e}"

    return check


def pytest_terminal_summary(terminalreporter, config):
    if _seen:
        terminalreporter.section("parity with upstream, max abs difference")
        for file, (count, worst) in sorted(_seen.items()):
            terminalreporter.line(f"{file:34} {count:3} tensors  {worst:.1e}")
    folder = config.stash[_folder]
    if folder.given and (folder.absent or folder.unknown()):
        terminalreporter.section(f"not compared of {folder.given}")
        for name, why in sorted(folder.absent.items()):
            terminalreporter.line(f"{name:50} {why}")
        for name in folder.unknown():
            terminalreporter.line(f"{name:50} a golden of no kind that the tests know")
