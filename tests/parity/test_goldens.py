"""The folder of goldens itself: it holds something to compare, the committed one holds everything."""

from __future__ import annotations

import json

from mulan_nodes.tests.parity.golden_folder import COMMITTED, KINDS, GoldenFolder

FAMILIES = ("sd15", "sd21", "sdxl", "pixart")


def cases_of(folder: GoldenFolder) -> list[str]:
    found = [*folder.cases(FAMILIES, ("text_encoder_output", "cross_attention_input", "context", "pooled"))]
    found += folder.full_sizes(FAMILIES)
    for kind in KINDS:
        found += folder.vision_cases(kind)
    return found + folder.vision_tasks("task") + folder.vision_tasks("steps")


def test_there_is_something_to_compare(folder):
    """What is missing is listed at the end of the report; a folder of which nothing can be compared is a mistake."""
    internvl = [*(folder.root / "internvl").glob("*.json")]
    assert cases_of(folder) or internvl, (
        f"no goldens in {folder.root}: expected are mulan/cases_*.json with the files they name, visionllm/*.json with "
        f"a .safetensors each, or internvl/*.json"
    )


def test_nothing_is_missing_of_the_committed_ones():
    folder = GoldenFolder()
    assert len(cases_of(folder)) == 27
    assert folder.absent == {} and folder.unknown() == []


def test_what_a_folder_lacks_and_what_it_holds_besides_is_told(tmp_path):
    (tmp_path / "visionllm").mkdir()
    for name in ("gdino_swin.json", "vl_bridge.json", "vl_bridge.safetensors"):
        (tmp_path / "visionllm" / name).write_bytes((COMMITTED / "visionllm" / name).read_bytes())
    other = tmp_path / "visionllm" / "another.json"
    other.write_text(json.dumps({"what": "something new"}), "utf-8")
    folder = GoldenFolder(tmp_path)
    assert cases_of(folder) == ["vl_bridge"]
    assert {
        "visionllm/gdino_swin.safetensors",
        "visionllm/unipose*.json",
        "mulan/cases_sd15.json",
    } <= folder.absent.keys()
    assert folder.unknown() == ["visionllm/another.json"]


def test_a_golden_of_another_name_is_known_by_what_it_says(tmp_path):
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"first_of_all{suffix}").write_bytes(
            (COMMITTED / "visionllm" / f"unipose_swin{suffix}").read_bytes()
        )
    assert GoldenFolder(tmp_path).vision_cases("unipose") == ["first_of_all"]


def test_manifests_beside_the_goldens_are_taken(tmp_path):
    (tmp_path / "goldens").mkdir()
    (tmp_path / "manifests" / "mulan").mkdir(parents=True)
    (tmp_path / "manifests" / "mulan" / "adapter_sd15_tiny.json").write_text("{}", "utf-8")
    folder = GoldenFolder(tmp_path / "goldens")
    assert folder.manifest_names("mulan") == ["adapter_sd15_tiny"]
    assert "visionllmv2_7b_swin_t" in folder.manifest_names("visionllm")
    assert folder.manifest_file("mulan", "adapter_sd21") is not None
