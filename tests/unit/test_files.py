"""Opening and recognizing files: what a user reads about one that is damaged, incomplete or something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints import tensor_files
from mulan_nodes.mulan.checkpoints.identify import identify
from mulan_nodes.mulan.conditioning.families import SD15, SDXL
from mulan_nodes.mulan.conditioning.model_files import WrongFileError, open_adapter, open_tensors, open_text_encoder

GOLDENS = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan"
ADAPTER = load_file(GOLDENS / "weights" / "sd15_tiny.safetensors")
ADAPTER_XL = load_file(GOLDENS / "weights" / "sdxl_embed_attnpool_tiny.safetensors")
WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>401 Unauthorized</title></head></html>"
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid "
    b"sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 13355638784\n"
)


def refusal(open_file, *arguments) -> str:
    with pytest.raises(WrongFileError) as raised:
        open_file(*arguments)
    return str(raised.value)


def saved(path: Path) -> bytes:
    """The bytes of a good adapter in the format of the ending."""
    if path.suffix == ".safetensors":
        save_file(ADAPTER, path)
    else:
        torch.save(ADAPTER, path)
    return path.read_bytes()


def header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


ACCIDENTS = {
    "nothing": (lambda data: b"", "it is empty; download it again"),
    "web page": (lambda data: WEB_PAGE + b" " * 5000, "it is a web page, not the file; the download was refused"),
    "git-lfs pointer": (
        lambda data: LFS_POINTER,
        "it is git-lfs's pointer to the file, not the file; fetch it with git lfs pull",
    ),
    "cut in the first bytes": (lambda data: data[:5], "it is cut short or damaged (5 bytes; "),
    "cut in the header": (lambda data: data[:100], "it is cut short or damaged (100 bytes; "),
    "cut in the data": (lambda data: data[:-100], "it is cut short or damaged ("),
    "noise": (lambda data: bytes(range(1, 200)) * 20, "it is cut short or damaged (3,980 bytes; "),
}


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_what_a_download_left(accident, ending, tmp_path):
    path = tmp_path / f"weights{ending}"
    damage, words = ACCIDENTS[accident]
    path.write_bytes(damage(saved(path)))
    message = refusal(open_tensors, path)
    assert message.startswith(
        f"weights{ending} (in {tmp_path}) cannot be read as "
        f"{'safetensors' if ending == '.safetensors' else 'plain weights'}: "
    )
    assert words in message and ("download" in message), message
    assert "weights_only" not in message and "\n" not in message, "torch advises to load code"


def test_a_header_cut_inside(tmp_path):
    path = tmp_path / "weights.safetensors"
    data = saved(path)
    path.write_bytes(data[: header_end(data) - 10])
    assert "it is cut short or damaged" in refusal(open_tensors, path)


def test_a_file_under_the_other_ending(tmp_path):
    data = saved(tmp_path / "a.safetensors")
    (tmp_path / "b.pth").write_bytes(data)
    assert "it is a safetensors file; rename it to .safetensors" in refusal(open_tensors, tmp_path / "b.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes((tmp_path / "b.pth").read_bytes()[:-1])
    assert "it is a safetensors file with the wrong name, and is cut short" in refusal(open_tensors, cut)
    data = saved(tmp_path / "c.pth")
    (tmp_path / "d.safetensors").write_bytes(data)
    assert "it is a file of torch.save; rename it to .pth" in refusal(open_tensors, tmp_path / "d.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "d.safetensors").read_bytes()[:-99])
    assert "it is a file of torch.save with the wrong name, and is cut short" in refusal(open_tensors, cut)


@pytest.mark.parametrize(
    "held, words",
    [
        (
            {"queries": torch.zeros(1), "model": torch.nn.Linear(2, 2)},
            "it holds torch.nn.modules.linear.Linear, and only tensors are loaded from such files, never code; ask "
            "for a .safetensors",
        ),
        ({"queries": torch.zeros(1), "code": print}, "never code"),
        (
            {"epoch": 3, "model": {"queries": torch.zeros(1)}},
            "holds more than tensors, the first is 'epoch' (int); expected a plain state dict",
        ),
        ([torch.zeros(1)], "holds a list, expected a plain state dict of tensors"),
    ],
)
def test_a_pth_that_is_more_than_tensors(held, words, tmp_path):
    torch.save(held, tmp_path / "weights.pth")
    message = refusal(open_adapter, tmp_path / "weights.pth")
    assert message.startswith(f"weights.pth (in {tmp_path})") and words in message
    assert "weights_only" not in message and "\n" not in message


def test_a_pth_of_before_torch_1_6_and_one_with_a_state_dict_inside(tmp_path):
    torch.save(ADAPTER, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": ADAPTER}, tmp_path / "nested.pth")
    for name in ("old.pth", "nested.pth"):
        file = open_tensors(tmp_path / name)
        assert file.shapes.keys() == ADAPTER.keys() and torch.equal(file.read("queries"), ADAPTER["queries"])


def test_a_file_that_went_away(tmp_path):
    message = refusal(open_tensors, tmp_path / "gone.safetensors")
    assert (
        message
        == f"gone.safetensors is not in {tmp_path}: the file was moved or deleted. Press R in the editor to refresh "
        "the list."
    )


@pytest.mark.parametrize(
    "error", [MemoryError("full"), torch.OutOfMemoryError("full")], ids=("MemoryError", "OutOfMemoryError")
)
def test_no_memory_is_not_taken_for_a_damaged_file(error, tmp_path, monkeypatch):
    saved(tmp_path / "weights.pth")
    monkeypatch.setattr(tensor_files.torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        open_tensors(tmp_path / "weights.pth")


# --- folders of shards ---


@pytest.fixture(params=[".safetensors", ".bin"])
def sharded(request, tmp_path) -> Path:
    """The tiny text encoder as two shards with an index."""
    folder = tmp_path / "InternVL-14B-224px"
    folder.mkdir()
    weights = load_file(GOLDENS / "text_encoder" / "model.safetensors")
    stem, save = ("model", save_file) if request.param == ".safetensors" else ("pytorch_model", torch.save)
    weight_map, names = {}, sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-{number:05}-of-00002{request.param}"
        save({name: weights[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"{stem}{request.param}.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    shutil.copy(GOLDENS / "text_encoder" / "config.json", folder)
    shutil.copy(GOLDENS / "tokenizer" / "tokenizer.model", folder)
    return folder


def index_of(folder: Path) -> Path:
    (index,) = folder.glob("*.index.json")
    return index


def second_shard(folder: Path) -> Path:
    (shard,) = folder.glob("*-00002-of-00002.*")
    return shard


def test_whole_shards_are_read(sharded):
    file = open_text_encoder(sharded)
    last_layer = max(int(name.split(".")[2]) for name in file.names if ".layers." in name)
    assert file.config.num_hidden_layers == 1 + last_layer
    assert torch.equal(
        file.state_dict()["model.norm.weight"], open_tensors(sharded).read(file.names["model.norm.weight"])
    )


def test_a_shard_that_is_missing(sharded):
    lost = second_shard(sharded)
    lost.unlink()
    assert (
        refusal(open_text_encoder, sharded)
        == f"the folder InternVL-14B-224px (in {sharded.parent}) lacks 1 of its shards, the first is {lost.name}. "
        "Download it again."
    )


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_shard_that_is_damaged(accident, sharded):
    damage, words = ACCIDENTS[accident]
    shard = second_shard(sharded)
    shard.write_bytes(damage(shard.read_bytes()))
    message = refusal(open_text_encoder, sharded)
    assert message.startswith(f"{shard.name} (in {sharded}) cannot be read as ") and words in message


def test_a_shard_without_a_tensor_of_the_index(sharded):
    shard = second_shard(sharded)
    held = dict(open_tensors(shard).shapes)
    lost = sorted(held)[0]
    kept = {name: torch.zeros(size) for name, size in held.items() if name != lost}
    save_file(kept, shard) if shard.suffix == ".safetensors" else torch.save(kept, shard)
    assert (
        refusal(open_text_encoder, sharded)
        == f"the folder InternVL-14B-224px (in {sharded.parent}) is damaged: {shard.name} does not hold {lost}. "
        "Download it again."
    )


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "it is empty"),
        (
            b'{"weight_map": {"a": "b',
            "it is not valid JSON with a `weight_map` from tensors to shards; download it again",
        ),
        (b"[]", "it is not valid JSON with a `weight_map`"),
        (b'{"metadata": {}}', "it is not valid JSON with a `weight_map`"),
        (b'{"weight_map": {"a": 1}}', "it is not valid JSON with a `weight_map`"),
        (b"\xff\xfe\x00", "it is not valid JSON with a `weight_map`"),
        (WEB_PAGE, "it is a web page"),
        (LFS_POINTER, "it is git-lfs's pointer"),
    ],
    ids=("empty", "cut", "list", "no map", "numbers", "bytes", "web page", "git-lfs pointer"),
)
def test_a_damaged_index(content, words, sharded):
    index = index_of(sharded)
    index.write_bytes(content)
    message = refusal(open_text_encoder, sharded)
    assert (
        message.startswith(f"{index.name} (in {sharded}) cannot be read as an index of shards: ") and words in message
    )


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "deeper/secret.safetensors"])
def test_an_index_reaches_nothing_outside_its_folder(shard, sharded):
    save_file({"a": torch.zeros(1)}, sharded.parent / "secret.safetensors")
    index_of(sharded).write_text(json.dumps({"weight_map": {"a": shard}}), "utf-8")
    message = refusal(open_text_encoder, sharded)
    assert f"names a shard that is not beside it, {shard!r}: nothing outside the folder is read." in message


def test_an_index_of_nothing(sharded):
    index_of(sharded).write_text('{"weight_map": {}}', "utf-8")
    assert "is a file without tensors; expected InternVL's LLaMA text encoder" in refusal(open_text_encoder, sharded)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    message = refusal(open_tensors, tmp_path)
    assert (
        "holds neither model.safetensors.index.json nor pytorch_model.bin.index.json" in message
        and str(tmp_path.parent) in message
    )


# --- text encoders ---


def encoder(path: Path, metadata: dict[str, str], change=lambda weights: weights) -> Path:
    weights = load_file(GOLDENS / "text_encoder" / "model.safetensors")
    weights = {name.removeprefix("qllama."): t for name, t in weights.items() if name.startswith("qllama.model.")}
    weights["spiece_model"] = torch.frombuffer(
        bytearray((GOLDENS / "tokenizer" / "tokenizer.model").read_bytes()), dtype=torch.uint8
    )
    save_file(change(weights), path, metadata=metadata)
    return path


HEADS = {"config": json.dumps({"num_attention_heads": 4})}


@pytest.mark.parametrize(
    "lost", ["model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"]
)
def test_an_encoder_without_one_of_its_tensors(lost, tmp_path):
    path = encoder(
        tmp_path / "encoder.safetensors",
        HEADS,
        lambda weights: {name: t for name, t in weights.items() if name != lost},
    )
    message = refusal(open_text_encoder, path)
    assert message.startswith(f"encoder.safetensors (in {tmp_path}) is incomplete: ")
    assert message.endswith(f" {lost}. Download it again.")


def test_an_encoder_without_its_tokenizer(tmp_path):
    path = encoder(
        tmp_path / "encoder.safetensors",
        HEADS,
        lambda weights: {name: t for name, t in weights.items() if name != "spiece_model"},
    )
    message = refusal(open_text_encoder, path)
    assert (
        "is a LLaMA text encoder without its sentencepiece model: the file has no tensor `spiece_model`. Take "
        "tokenizer.model from" in message
    )


def test_a_folder_without_its_tokenizer(sharded):
    (sharded / "tokenizer.model").unlink()
    message = refusal(open_text_encoder, sharded)
    assert (
        "without its sentencepiece model: the folder InternVL-14B-224px has no tokenizer.model. Take tokenizer.model "
        "from OpenGVLab" in message
    )


@pytest.mark.parametrize(
    "config, words",
    [
        ("{", "its metadata `config` is not valid JSON ("),
        ("[]", "its metadata `config` holds a list, expected an object"),
        (
            '{"num_attention_heads": "many"}',
            "its metadata `config`: num_attention_heads is 'many', expected a whole number from 1 to 1024",
        ),
        ('{"num_attention_heads": 5}', "num_attention_heads is 5, expected a divisor of "),
        ('{"num_attention_heads": 0}', "num_attention_heads is 0, expected a whole number"),
        ("{}", "num_attention_heads is missing, expected a whole number"),
    ],
)
def test_an_encoder_whose_number_of_heads_is_unknown(config, words, tmp_path):
    message = refusal(open_text_encoder, encoder(tmp_path / "encoder.safetensors", {"config": config}))
    assert message.startswith(f"encoder.safetensors (in {tmp_path})") and words in message


def test_a_damaged_config_of_a_folder(sharded):
    (sharded / "config.json").write_text('{"qllama_config": ', "utf-8")
    message = refusal(open_text_encoder, sharded)
    assert "its config.json is not valid JSON (" in message


# --- adapters ---


def without(tensors: dict, *lost: str) -> dict:
    return {name: t for name, t in tensors.items() if name not in lost}


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "tensors, family, words",
    [
        (
            without(ADAPTER, "transformer.decoder.layers.0.norm3.bias"),
            SD15,
            "is an incomplete MuLan adapter for Stable Diffusion 1.5: 1 tensors are missing or have the wrong shape, "
            "the first, transformer.decoder.layers.0.norm3.bias, is missing. Download it again.",
        ),
        (ADAPTER | {"proj.2.bias": torch.zeros(5)}, SD15, "the first, proj.2.bias, has the shape (5,)"),
        (
            without(ADAPTER, "transformer.encoder.layers.0.linear1.weight"),
            SD15,
            "looks like a MuLan adapter, but cannot be used: it has no tensor "
            "'transformer.encoder.layers.0.linear1.weight'",
        ),
        (without(ADAPTER_XL, "adapter2.queries"), SDXL, "it has no tensor 'adapter2.queries'"),
        (
            without(ADAPTER_XL, "pool_caption_projection.v_proj.bias"),
            SDXL,
            "the first, pool_caption_projection.v_proj.bias, is missing",
        ),
        (
            without(ADAPTER_XL, "add_embedding.linear_2.bias"),
            SDXL,
            "the first, add_embedding.linear_2.bias, is missing",
        ),
    ],
    ids=("missing", "shape", "size", "half", "pooled", "half of the embedding"),
)
def test_an_incomplete_adapter(tensors, family, words, ending, tmp_path):
    path = tmp_path / f"adapter{ending}"
    save_file(tensors, path) if ending == ".safetensors" else torch.save(tensors, path)
    message = refusal(open_adapter, path, family)
    assert message.startswith(f"adapter{ending} (in {tmp_path})") and words in message


def test_the_tiny_adapters_are_complete_but_of_unknown_width(tmp_path):
    """Their widths are no family's: the message lists known widths, and without `family` nothing is taken for one."""
    assert open_adapter(GOLDENS / "weights" / "sdxl_embed_attnpool_tiny.safetensors", SDXL).patches_model
    message = refusal(open_adapter, GOLDENS / "weights" / "sdxl_embed_attnpool_tiny.safetensors")
    width = ADAPTER_XL["adapter1.queries"].shape[-1] + ADAPTER_XL["adapter2.queries"].shape[-1]
    assert (
        f"it gives contexts of width {width}; known are 768 (Stable Diffusion 1.5), 1024 (Stable Diffusion 2.1), "
        "2048 (SDXL)" in message
    )


# --- what else a file may be ---

KINDS = {
    "model.diffusion_model.input_blocks.0.0.weight": "a whole checkpoint (it belongs in models/checkpoints)",
    "lora_unet_x.lora_up.weight": "a LoRA (it belongs in models/loras)",
    "base_model.layer.lora_A.weight": "a LoRA (it belongs in models/loras)",
    "control_model.input_hint_block.0.weight": "a ControlNet (it belongs in models/controlnet)",
    "transformer.resblocks.0.attn.in_proj_weight": "an OpenCLIP text encoder",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder",
    "vision_model.encoder.layers.0.norm1.weight": "a vision encoder",
    "double_blocks.0.img_attn.qkv.weight": "a diffusion model (it belongs in models/diffusion_models)",
    "decoder.conv_in.weight": "a VAE (it belongs in models/vae)",
    "model.embed_tokens.weight": "a large language model's text encoder (it belongs in models/text_encoders)",
    "clip_projector.cross_attn.q.weight": "an InternVL-C or -G checkpoint, without its text encoder (it belongs in "
    "models/internvl)",
    "something.else": "no file this pack knows (its tensors begin with something.else)",
}


@pytest.mark.parametrize("name", KINDS)
def test_other_files_are_called_what_they_are(name):
    assert identify({name: (8, 8)}) == KINDS[name]


@pytest.mark.parametrize(
    "width, name", [(768, "CLIP-L"), (1024, "CLIP-H"), (1280, "CLIP-G"), (640, "CLIP (width 640)")]
)
def test_clips_are_told_by_their_width(width, name):
    assert identify({"text_model.encoder.layers.0.mlp.fc1.weight": (4 * width, width)}) == f"a {name} text encoder"


@pytest.mark.parametrize(
    "tensors, family",
    [
        ({"queries": (1, 77, 768), "proj.0.weight": (768, 4096)}, "Stable Diffusion 1.5"),
        ({"queries": (1, 77, 1024), "proj.0.weight": (1024, 4096)}, "Stable Diffusion 2.1"),
        ({"queries": (1, 77, 640), "proj.0.weight": (640, 4096)}, "an unknown family"),
        ({"adapter1.queries": (1, 120, 1280)}, "SDXL"),
        (
            {
                "linear_1.weight": (1152, 4096),
                "linear_1.bias": (1152,),
                "linear_2.weight": (1152, 1152),
                "linear_2.bias": (1152,),
            },
            "PixArt",
        ),
    ],
)
def test_an_adapter_among_the_text_encoders_is_called_one(tensors, family, tmp_path):
    assert identify(tensors) == f"a MuLan adapter for {family}"
    save_file(
        {name: torch.zeros(size, dtype=torch.uint8) for name, size in tensors.items()}, tmp_path / "x.safetensors"
    )
    assert f"is a MuLan adapter for {family}; expected InternVL's LLaMA text encoder" in refusal(
        open_text_encoder, tmp_path / "x.safetensors"
    )
