"""Model files and configurations of any content: what cannot be used is refused in a sentence that names the file."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil

import pytest
import torch

from mulan_nodes.mulan.checkpoints.config import Config
from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile, WrongFileError, open_tensors
from mulan_nodes.mulan.checkpoints.weight_check import count_layers
from mulan_nodes.mulan.conditioning.model_files import adapter_from_tensors, text_encoder_from_tensors
from mulan_nodes.mulan.internvl.internvl_files import internvl_from_tensors, open_internvl
from mulan_nodes.mulan.internvl_chat.chat_files import chat_from_tensors, open_chat
from mulan_nodes.tools import comfyui
from mulan_nodes.tools.random_checkpoints import internvl as random_internvl
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes.model.visionllm_files import open_visionllm, visionllm_from_tensors

CASES = {"visionllm": 12, "internvl": 80, "chat": 80, "hf": 60, "internlm2": 60, "text": 150, "adapter": 60}
OPENERS = {
    "visionllm": visionllm_from_tensors,
    "internvl": internvl_from_tensors,
    "chat": chat_from_tensors,
    "hf": chat_from_tensors,
    "internlm2": chat_from_tensors,
    "text": text_encoder_from_tensors,
    "adapter": adapter_from_tensors,
}
VALUES = (
    *("x", "", None, [], {}, {"a": 1}, [1] * 50, True, False, 0, -1, 1.5, 3, 7, "4"),
    *(1e308, 1e-300, math.nan, math.inf, 10**12, 10**30),
)
DTYPES = (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float64)
INDICES = (".x.", ".999999999.", ".-1.", "..", ".01.", ".9.")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_models):
    """A published folder, or file, of each kind."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "visionllm": random_visionllm.checkpoint(folder / "visionllm", mappers=True),
        "internvl": random_internvl.checkpoint(folder / "internvl"),
        "chat": random_chat.checkpoint(folder / "chat"),
        "hf": random_chat.checkpoint(folder / "hf", "qwen3", "hf"),
        "internlm2": random_chat.checkpoint(folder / "internlm2", "internlm2"),
        "text": comfyui.folder() / "models" / "text_encoders" / "tiny_internvl.safetensors",
        "adapter": comfyui.folder() / "models" / "mulan" / "tiny_sd15_adapter.safetensors",
    }


def paths(entries, path=()):
    for name, value in entries.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from paths(value, (*path, name))


def changed_config(rng, config):
    config = copy.deepcopy(config)
    *way, last = rng.choice(list(paths(config)))
    inside = config
    for name in way:
        inside = inside[name]
    inside[last] = rng.choice(VALUES)
    return config


def changed_tensors(rng, tensors):
    """Change name, shape or dtype of one tensor."""
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    kind = rng.choice(("flat", "scalar", "extra", "row", "less", "transposed", "empty", "dtype", "missing", "index"))
    if kind == "missing":
        return {other: value for other, value in tensors.items() if other != name}
    if kind == "index":
        return {**tensors, name.replace(".0.", rng.choice(INDICES), 1): tensor}
    if kind == "dtype":
        return {**tensors, name: tensor.to(rng.choice(DTYPES))}
    whole = tensor if tensor.ndim else tensor[None]
    made = {
        "flat": tensor.reshape(-1),
        "scalar": tensor.reshape(-1)[0],
        "extra": tensor[None],
        "row": torch.cat((whole, whole[:1])),
        "less": whole[:-1],
        "transposed": whole.transpose(0, -1),
        "empty": whole[:0],
    }
    return {**tensors, name: made[kind]}


@pytest.mark.parametrize("kind", OPENERS)
def test_whatever_a_model_file_holds_is_opened_or_refused_in_a_sentence(kind, models, tmp_path):
    rng, source = random.Random(kind), models[kind]
    file = open_tensors(source)
    tensors = {name: file.read(name) for name in file.shapes}
    path = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, path)
    beside, inside = source / "config.json", file.metadata.get("config")
    config = json.loads(beside.read_text("utf-8") if source.is_dir() else inside or "{}")
    refused = 0
    for _ in range(CASES[kind]):
        is_config = bool(config) and rng.random() < 0.5
        told = changed_config(rng, config) if is_config else config
        held = tensors if is_config else changed_tensors(rng, tensors)
        metadata = {**file.metadata, "config": json.dumps(told)} if inside else file.metadata
        if source.is_dir():
            (path / "config.json").write_text(json.dumps(told), "utf-8")
        shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
        dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in held.items()}
        try:
            OPENERS[kind](TensorFile(path, shapes, held.__getitem__, metadata, dtypes))
        except WrongFileError as error:
            refused += 1
            assert path.name in str(error) and "\n" not in str(error) and "too many values" not in str(error)
    assert refused > CASES[kind] // 4


# --- what bears a file's name ---


@pytest.mark.parametrize(
    "kind, opened", [("internvl", open_internvl), ("chat", open_chat), ("visionllm", open_visionllm)]
)
@pytest.mark.parametrize("thing", ["folder", "loop", "broken link", "not text", "deep", "list"])
def test_a_config_that_is_no_readable_file_is_not_taken_for_absent(kind, opened, thing, models, tmp_path):
    copied = tmp_path / "Model"
    shutil.copytree(models[kind], copied)
    config = copied / "config.json"
    config.unlink()
    if thing == "folder":
        config.mkdir()
    elif thing in ("loop", "broken link"):
        config.symlink_to(config if thing == "loop" else copied / "gone")
    else:
        config.write_bytes({"not text": b"\xc3\x28{", "deep": b"[" * 100000, "list": b"[]"}[thing])
    with pytest.raises(WrongFileError, match="config.json") as refusal:
        opened(copied)
    assert "Model" in str(refusal.value)


def test_a_config_with_a_byte_order_mark_is_read(models, tmp_path):
    shutil.copytree(models["internvl"], tmp_path / "Model")
    config = tmp_path / "Model" / "config.json"
    for encoding in ("utf-8-sig", "utf-16"):
        config.write_bytes((models["internvl"] / "config.json").read_text("utf-8").encode(encoding))
        assert open_internvl(tmp_path / "Model").model.config == open_internvl(models["internvl"]).model.config


@pytest.mark.parametrize(
    "held, words",
    [
        ({1: torch.zeros(2)}, "its name is of type int"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a sparse_coo tensor"),
        ({"a": torch.zeros(2, device="meta")}, "a tensor without all its values"),
        ({"a": torch.zeros(1).expand(10**6)}, "a tensor without all its values"),
    ],
)
def test_a_pth_of_tensors_that_are_no_weights(held, words, tmp_path):
    torch.save(held, tmp_path / "weights.pth")
    with pytest.raises(WrongFileError, match=words):
        open_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"\x80", b"\x80\x02", b"(", b"PK\x03\x04"])
def test_a_pth_of_a_few_bytes(content, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(WrongFileError, match=r"weights.pth \(in .*it is cut short or damaged \(\d bytes; "):
        open_tensors(tmp_path / "weights.pth")


# --- one entry, one layer ---


def test_entries_are_of_their_kind_and_range():
    config = Config({"heads": 4.0, "none": None, "eps": 1e-6, "text": "a", "in": {"n": "x" * 99}}, "F (in D)")
    assert (config.integer("heads", high=9), config.integer("none", 7, high=9)) == (4, 7)
    assert (config.number("eps", low=0, high=1), config.text("text"), config.section("gone").entries) == (1e-6, "a", {})
    with pytest.raises(WrongFileError, match=r"F \(in D\): in.n is 'xxx.*\.\.\., expected a whole number from 1 to 9"):
        config.section("in").integer("n", high=9)
    for value in (True, 1.5, math.nan, math.inf, -1, 10**400, [1]):
        with pytest.raises(WrongFileError, match="heads is .*, expected a whole number"):
            Config({"heads": value}).integer("heads", high=9)
    with pytest.raises(WrongFileError, match="heads is 3, expected a divisor of 8, the model's width"):
        Config({"heads": 3}).heads("heads", 8)
    with pytest.raises(WrongFileError, match="with an even size of a head"):
        Config({"heads": 8}).heads("heads", 8, even="size of a head")


def test_layers_are_numbered_without_a_gap():
    assert count_layers(["a.0.x", "a.1.x", "b.9"], "a.") == 2
    for odd in ("a.3.x", "a.x.x", "a.01.x", "a.999999999.x", "a.-1.x"):
        with pytest.raises(ValueError, match="but none of a.2"):
            count_layers(["a.0.x", "a.1.x", odd], "a.")
