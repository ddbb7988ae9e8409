"""`dev.py eval zeroshot`: folders of classes, their names in a language, what is reported, and the paper's figures
beside it.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mulan_nodes.mulan.internvl.internvl_model import LoadedInternVL
from mulan_nodes.tools.commands import eval as command
from mulan_nodes.tools.evaluate import zeroshot as evaluate_zeroshot
from mulan_nodes.tools.tinyworld import world
from mulan_nodes.tools.zeroshot.dataset import Dataset, WrongDatasetError
from mulan_nodes.tools.zeroshot.paper import PUBLISHED, published

THINGS = {"red circle": ("red", "circle"), "blue star": ("blue", "star")}


def draw(folder: Path, colour: str, shape: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(shape))
    for number in range(count):
        Image.fromarray(world.draw(world.Thing(colour, shape, "big"), rng)).save(folder / f"{number}.png")


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Two classes of four pictures, in folders that do not tell what is on them in any language but English."""
    for name, thing in THINGS.items():
        draw(tmp_path / "data" / name.replace(" ", "_"), *thing, 4)
    return tmp_path / "data"


@pytest.fixture
def evaluate(comfyui_folder, tiny_models, tmp_path, capsys):
    """Runs the command's function and gives what it wrote."""

    def run(dataset: Path | None, **more) -> str:
        options = {"language": None, "checkpoint": None, "text_encoder": None, "mode": None, **more}
        evaluate_zeroshot.evaluation(comfyui_folder, True, tmp_path / "output", Namespace(dataset=dataset, **options))
        written = (tmp_path / "output" / "zeroshot_scores.md").read_text("utf-8")
        assert written in capsys.readouterr().out
        return written

    return run


def row(table: str, *begin: str) -> list[str]:
    """The cells of the one row that begins so."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    (found,) = [cells for cells in rows if cells[: len(begin)] == list(begin)]
    return found


def test_folders_are_classes_and_their_names_are_labels(dataset, evaluate):
    told = evaluate(dataset)
    assert "8 pictures of 2 classes in data, tiny_internvl_vision.safetensors, mode C" in told
    assert row(told, "en") == ["en", "English (paper)", "1.0000", "1.0000", ""]
    assert row(told, "red_circle") == ["red_circle", "red circle", "1.00", "4"]


def test_names_of_a_language_come_from_the_folder(dataset, evaluate):
    (dataset / "classnames_zh.json").write_text(
        json.dumps({"red_circle": "红色的圆形", "blue_star": "蓝色的五角星"}), "utf-8"
    )
    (dataset / "classnames.json").write_text(json.dumps(["синяя звезда", "красный круг"]), "utf-8")
    told = evaluate(dataset, language=["cn", "ru"], mode="G")
    assert "mode G" in told and row(told, "zh")[2] == row(told, "ru")[2] == "1.0000"
    assert row(told, "blue_star") == ["blue_star", "蓝色的五角星", "1.00", "синяя звезда", "1.00", "4"]


def test_wrong_labels_score_nothing(dataset, evaluate):
    (dataset / "classnames.json").write_text(
        json.dumps({"red_circle": "a blue star", "blue_star": "a red circle"}), "utf-8"
    )
    told = evaluate(dataset)
    assert row(told, "en")[2:4] == ["0.0000", "1.0000"] and row(told, "red_circle")[2] == "0.00"


def test_what_cannot_be_read_is_told_and_the_rest_is_measured(dataset, evaluate):
    (dataset / "red_circle" / "broken.jpg").write_bytes(b"no picture")
    (dataset / "nothing").mkdir()
    (dataset / "damaged").mkdir()
    (dataset / "damaged" / "a.png").write_bytes(b"")
    told = evaluate(dataset)
    assert "8 pictures of 4 classes" in told and "Not read (3):" in told
    assert "red_circle/broken.jpg: it is not an image that can be read" in told
    assert "no image in" in told and "none of the 1 images" in told
    assert "| nothing |" not in told


def test_a_second_run_looks_at_new_pictures_only(dataset, evaluate, monkeypatch):
    looked = []
    embed = LoadedInternVL.embed_images

    def counted(self, pictures, *arguments, **options):
        looked.append(len(pictures))
        return embed(self, pictures, *arguments, **options)

    monkeypatch.setattr(LoadedInternVL, "embed_images", counted)
    before = evaluate(dataset)
    assert looked == [4, 4]
    draw(dataset / "red_circle", "red", "circle", 5)
    assert evaluate(dataset).replace("| 5 |", "| 4 |").replace("9 pictures", "8 pictures") == before and looked == [
        4,
        4,
        1,
    ]


def test_a_run_that_is_stopped_goes_on_where_it_was(dataset, evaluate, monkeypatch):
    looked = []
    embed = LoadedInternVL.embed_images

    def stopped(self, pictures, *arguments, **options):
        looked.append(len(pictures))
        if len(looked) == 2:
            raise KeyboardInterrupt
        return embed(self, pictures, *arguments, **options)

    monkeypatch.setattr(LoadedInternVL, "embed_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset)
    assert "8 pictures of 2 classes" in evaluate(dataset) and looked == [4, 4, 4]


def test_imagenet_has_names_in_five_languages(tmp_path):
    for synset in ("n01443537", "n01440764", "n15075141"):
        (tmp_path / synset).mkdir()
    dataset = Dataset.open(tmp_path)
    assert dataset.labels("en") == ("tench", "goldfish", "toilet paper")
    assert dataset.labels("zh")[:2] == ("丁鲷", "金鱼") and dataset.labels("ja")[0] == "テンチ"
    assert dataset.labels("it")[1] == "un pesce rosso" and dataset.labels("ar")[0] == "سمك التنش"
    with pytest.raises(
        WrongDatasetError,
        match="are ImageNet's, whose names are here in ar, en, it, ja, zh, not in de: write classnames_de.json",
    ):
        dataset.labels("de")
    (tmp_path / "classnames_de.json").write_text('["Schleie", "Goldfisch", "Toilettenpapier"]', "utf-8")
    assert dataset.labels("de") == ("Schleie", "Goldfisch", "Toilettenpapier")


def test_imagenet_v2_numbers_its_classes(tmp_path):
    for number in range(1000):
        (tmp_path / str(number)).mkdir()
    dataset = Dataset.open(tmp_path)
    assert dataset.classes[:3] == ("0", "1", "10") and dataset.labels("en")[:3] == ("tench", "goldfish", "brambling")


@pytest.mark.parametrize(
    "told, message",
    [
        ("{", "classnames.json is no JSON"),
        ('"a"', "must hold an object with a name for each folder, or a list of 2 names"),
        ('["a"]', "or a list of 2 names"),
        ('{"red_circle": "a"}', "has no name for the folder blue_star"),
        ('{"red_circle": "a", "blue_star": " "}', "has no name for the folder blue_star"),
    ],
)
def test_wrong_names_are_told(dataset, told, message):
    (dataset / "classnames.json").write_text(told, "utf-8")
    with pytest.raises(WrongDatasetError, match=message):
        Dataset.open(dataset).labels("en")


def test_what_is_no_data_set_ends_with_the_reason(dataset, evaluate, tmp_path):
    with pytest.raises(SystemExit, match="Nothing was measured: .*gone is no folder"):
        evaluate(tmp_path / "gone")
    with pytest.raises(SystemExit, match="holds 0 folders; expected is a folder for each class"):
        evaluate(dataset / "red_circle")
    for picture in dataset.rglob("*.png"):
        picture.write_bytes(b"")
    with pytest.raises(SystemExit, match="there is no picture in .*data that can be read; none of the 4 images in"):
        evaluate(dataset)
    with pytest.raises(SystemExit, match="Nothing was measured: other.safetensors is not in .*models/internvl"):
        evaluate(dataset, checkpoint="other.safetensors")


def test_published_figures_stand_beside_and_nothing_is_claimed(dataset, evaluate, monkeypatch):
    told = evaluate(dataset)
    assert row(told, "ImageNet-1K", "ar") == ["ImageNet-1K", "ar", "0.4486", "no"] and row(told, "ObjectNet")[2:] == [
        "0.806",
        "no",
    ]
    assert published(1000, 50_000) is PUBLISHED[0] and published(1000, 49_999) is None
    monkeypatch.setattr("mulan_nodes.tools.zeroshot.report.published", lambda classes, pictures: PUBLISHED[0])
    told = evaluate(dataset, checkpoint="tiny_internvl_vision.safetensors", text_encoder="tiny_internvl.safetensors")
    assert "InternVL-C on ImageNet-1K, published" in told and row(told, "en")[-1] == "0.83178"
    assert row(told, "ImageNet-1K", "en")[-1] == "1.0000, tiny_internvl_vision.safetensors, mode C"
    assert row(told, "ImageNet-1K", "zh")[-1] == "no"


def test_without_a_data_set_the_tiny_world_is_asked(evaluate, monkeypatch):
    monkeypatch.setattr(evaluate_zeroshot, "DRAWINGS", 1)
    told = evaluate(None, language=["tr", "it"])
    assert (
        told.index("InternVL-C, tiny") < told.index("InternVL-G, tiny")
        and told.count("| Turkish | 1.00 | 1.00 | 1.00 |") == 2
    )
    assert told.count("| Italian (never trained) |") == 2 and "reproduced here" in told
    with pytest.raises(SystemExit, match="the tiny world has no words in pl"):
        evaluate(None, language=["pl"])


def test_the_command_line(capsys, tmp_path):
    def parse(*arguments):
        parser = ArgumentParser()
        command.add_arguments(parser)
        return parser.parse_args(arguments)

    assert parse().what is None and parse("visionllm").what == "visionllm"
    options = parse("zeroshot", "--dataset", "data", "--language", "en", "zh", "--mode", "G")
    given = (options.dataset, options.language, options.mode, options.checkpoint)
    assert given == (Path("data"), ["en", "zh"], "G", None)
    for wrong in (("--dataset", "data"), ("mulan", "--language", "en")):
        with pytest.raises(SystemExit, match="belongs? to: dev.py eval zeroshot"):
            command.run(tmp_path, parse(*wrong))
    with pytest.raises(SystemExit):
        parse("sixty")
