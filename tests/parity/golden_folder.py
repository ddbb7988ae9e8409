"""A folder of goldens: which cases it holds, and what it lacks.

Tests take their cases from here, so that any folder of the same layout can be compared: `mulan/`, `visionllm/` and
`internvl/`, or one of them alone. A golden is a .json with a .safetensors; every one is optional. What is missing is
listed in `absent`, and the tests that need it do not run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMITTED = HERE / "goldens"

# Kind of VisionLLM golden -> what its .json says in `what`. A file's name begins with its kind, or is any other.
KINDS = {
    "gdino": "OVGroundingDino",
    "unipose": "UniPose",
    "region_encoder": "RegionEncoder",
    "vl_bridge": "pixel_shuffle",
    "internvit": "InternVisionModel",
    "internlm2": "InternLM2ForCausalLM",
    "gen_edit_mapping": "StableDiffusionWithLLMEmb",
    "postprocess": "post-processing",
    "preprocess": "token ids",
    "model": "VisionLLMv2Model",
}
MULAN_FILES = ("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.model")


def read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def named(facts: Any, key: str) -> Iterator[str]:
    """Every text that stands under `key` anywhere in a .json, also in a dict there."""
    if isinstance(facts, list):
        for each in facts:
            yield from named(each, key)
    elif isinstance(facts, dict):
        for name, value in facts.items():
            if name == key:
                yield from filter(
                    lambda text: isinstance(text, str), value.values() if isinstance(value, dict) else [value]
                )
            yield from named(value, key)


class GoldenFolder:
    """`given`: the folder of --goldens, None for the committed one; `manifests`: that of --manifests."""

    def __init__(self, given: Path | None = None, manifests: Path | None = None):
        self.given = given
        self.root = given or COMMITTED
        beside = self.root.parent / "manifests"
        self.manifests = manifests or (beside if beside.is_dir() else HERE / "manifests")
        self.absent: dict[str, str] = {}  # what is missing -> why that matters

    def side(self, name: str) -> Path:
        """The folder `mulan`, `visionllm` or `internvl`; the given folder may itself be one."""
        return self.root / name if (self.root / name).is_dir() else self.root

    def lacks(self, side: str, *files: str) -> list[str]:
        """Which of these files of a side are not there; they are noted as absent."""
        missing = [file for file in files if not (self.side(side) / file).is_file()]
        self.absent |= {f"{side}/{file}": "missing" for file in missing}
        return missing

    # --- MuLan ---

    @cached_property
    def mulan_cases(self) -> dict[str, dict]:
        """cases_<name>.json by name: "sd15", "sd15_direct", "sdxl"."""
        return {
            file.stem.removeprefix("cases_"): read(file) for file in sorted(self.side("mulan").glob("cases_*.json"))
        }

    def cases(self, families: tuple[str, ...], keys: tuple[str, ...]) -> list[str]:
        """The MuLan cases of these families whose files are all there: those to load, and those named under `keys`."""
        found = []
        for family in families:
            cases = [name for name, facts in self.mulan_cases.items() if facts["family"] == family]
            if not cases:
                self.absent[f"mulan/cases_{family}.json"] = "missing"
            for case in cases:
                facts = self.mulan_cases[case]
                weights = [text.split(" ")[0] for text in adapters(facts) if ".safetensors" in text.split(" ")[0]]
                stored = [text.split("#")[0] for key in keys for text in named(facts, key) if "#" in text]
                if not self.lacks("mulan", *dict.fromkeys((*MULAN_FILES, *weights, *stored))):
                    found.append(case)
        return found

    def full_sizes(self, families: tuple[str, ...]) -> list[str]:
        """The adapters of realdims.json, of these families."""
        if self.lacks("mulan", "realdims.json", "realdims.safetensors"):
            return []
        every = [case["adapter"] for case in read(self.side("mulan") / "realdims.json")["cases"]]
        return [
            name
            for name in every
            if name.split("_")[0] in families and self.manifest_file("mulan", f"adapter_{name}") is not None
        ]

    # --- VisionLLM ---

    @cache  # noqa: B019
    def kind(self, file: Path) -> str | None:
        """Which of `KINDS` a .json is: by its name, else by what it says; None for others."""
        by_name = [kind for kind in KINDS if file.stem == kind or file.stem.startswith(f"{kind}_")]
        if by_name:
            return by_name[0]
        facts = read(file)
        what = str(facts.get("what", "")) if isinstance(facts, dict) else ""
        return next((kind for kind, text in KINDS.items() if text in what), None)

    def vision_cases(self, kind: str) -> list[str]:
        """The goldens of a kind by name, those whose two files are there."""
        folder = self.side("visionllm")
        files = [file for file in sorted(folder.glob("*.json")) if self.kind(file) == kind]
        if not files:
            self.absent[f"visionllm/{kind}*.json"] = "missing"
        names = [file.stem for file in files if not self.lacks("visionllm", f"{file.stem}.safetensors")]
        if kind != "model":
            return names
        told = {name: read(folder / f"{name}.json") for name in names}
        return [name for name, facts in told.items() if "config" in facts]

    def vision_tasks(self, key: str) -> list[str]:
        """The goldens of whole models that have `key` in their .json ("task", "steps") and whose model is there."""
        folder = self.side("visionllm")
        files = [file for file in sorted(folder.glob("*.json")) if self.kind(file) == "model" and key in read(file)]
        if not files:
            self.absent[f"visionllm/model_*.json with `{key}`"] = "missing"
        return [
            file.stem
            for file in files
            if not self.lacks("visionllm", f"{file.stem}.safetensors", f"{model_of(read(file))}.json")
        ]

    def unknown(self) -> list[str]:
        """The .json files of VisionLLM's side that no test reads."""
        folder = self.side("visionllm")
        if folder == self.root and not (folder / "model.json").is_file():
            return []
        return [
            f"visionllm/{file.name}"
            for file in sorted(folder.glob("*.json"))
            if file.stem != "eval_templates" and self.kind(file) is None
        ]

    # --- manifests ---

    def manifest_file(self, side: str, name: str) -> Path | None:
        """The manifest of that name, beside the goldens or the committed one."""
        files = (folder / side / f"{name}.json" for folder in (self.manifests, HERE / "manifests"))
        return next((file for file in files if file.is_file()), None)

    def manifest_names(self, side: str) -> list[str]:
        """The names of the manifests: of those beside the goldens, else of the committed ones."""
        folders = (self.manifests / side, HERE / "manifests" / side)
        return next(
            names
            for folder in folders
            if (names := [f.stem for f in sorted(folder.glob("*.json")) if f.stem != "SUMMARY"])
        )

    def manifests_of(self, *prefixes: str) -> list[str]:
        """The VisionLLM manifests that have tensors below each of the prefixes ("gdino.", "llm.")."""
        files = {name: self.manifest_file("visionllm", name) for name in self.manifest_names("visionllm")}
        told = {name: read(file) for name, file in files.items() if file is not None}
        return [
            name
            for name, facts in told.items()
            if all(any(tensor.startswith(prefix) for tensor in facts["tensors"]) for prefix in prefixes)
        ]


def adapters(facts: dict) -> list[str]:
    """What a MuLan case says of its adapter's files: a path, or paths with a remark."""
    listed = facts["adapter_weights"]
    return [listed] if isinstance(listed, str) else list(listed.values() if isinstance(listed, dict) else listed)


def model_of(facts: dict) -> str:
    """The golden of the model that a task's golden was made with: "model" of "model.json for configuration"."""
    return facts.get("see", "model").split(".json")[0]
