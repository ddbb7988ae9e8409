"""The converter of VisionLLM v2: its one file answers as the source does and needs nothing beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import comfy.model_base
import comfy.sd
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints import quantization
from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError, open_tensors
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.conversion.__main__ import main
from mulan_nodes.mulan.conversion.converters import CannotWriteError, convert
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes.model.visionllm import Prompt
from mulan_nodes.visionllm_nodes.model.visionllm_files import TOKENIZER, open_visionllm, unused_tensors
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

ROOT = Path(__file__).resolve().parents[2]
from mulan_nodes.tests.parity.visionllm_case import Case, recipe  # noqa: E402

GOLDENS = ROOT / "tests" / "parity" / "goldens" / "visionllm"
FORMS = ("one file", "safetensors shards", "bin shards")
# Relative errors of the hidden states; measured on these weights: int8 0.018, fp8 0.060, fp16 0.0012; of 26B's make
# 0.024, 0.082, 0.0011.
TOLERANCES = {"int8": 0.04, "int4": 0.3, "fp8": 0.12, "fp16": 3e-3}
TOKENIZER_CONFIG = {"legacy": False, "add_bos_token": True}
INDEX = "gdino.model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self.relative_position_index"
IMAGE_SIZE = 56  # pixels


# --- sources ---


def sharded(source: Path, folder: Path, suffix: str) -> Path:
    """The folder `source` again, its weights in two shards."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    tensors = load_file(source / "model.safetensors")
    stem, save = ("model", save_file) if suffix == ".safetensors" else ("pytorch_model", torch.save)
    names, shard_of = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-{number:05}-of-00002{suffix}"
        save({name: tensors[name] for name in part}, folder / shard)
        shard_of |= dict.fromkeys(part, shard)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": shard_of}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """One model in every form it may be published in."""
    folder = tmp_path_factory.mktemp("sources")
    one = random_visionllm.checkpoint(folder / "VisionLLMv2-tiny")
    tensors = load_file(one / "model.safetensors")
    save_file({**tensors, INDEX: torch.zeros(25, 25, dtype=torch.int64)}, one / "model.safetensors")
    (one / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG), "utf-8")
    return dict(
        zip(
            FORMS,
            (one, sharded(one, folder / "Shards", ".safetensors"), sharded(one, folder / "Bin", ".bin")),
            strict=True,
        )
    )


@pytest.fixture(scope="module")
def large_make(tmp_path_factory) -> Path:
    """The make of the 26B model, InternViT and InternLM2, at the size of their goldens."""
    folder = tmp_path_factory.mktemp("large") / "VisionLLMv2-26B-tiny"
    tower, language, bridge = (Case(GOLDENS, name) for name in ("internvit", "internlm2", "vl_bridge"))
    tokenizer = random_visionllm.sentencepiece_model(random_visionllm.PIECES)
    rows, width = 400, language.facts["config"]["hidden_size"]
    shapes = {f"vis_encoder.{name}": shape for name, shape in tower.facts["weights"]["tensors"].items()}
    shapes |= {
        f"llm.{name}": [rows, width]
        if len(shape) == 2 and shape[0] == language.facts["config"]["vocab_size"]
        else shape
        for name, shape in language.facts["weights"]["tensors"].items()
    }
    shapes |= bridge.facts["weights_per_bridge"]["internvl_mlp"]["tensors"]
    shapes |= {f"emb_embeddings_{task}.weight": [4, width] for task in ("det", "pose")}
    folder.mkdir()
    save_file(
        {name: torch.from_numpy(tensor) for name, tensor in recipe.state_dict({"tensors": shapes}, 1).items()},
        folder / "model.safetensors",
    )
    (folder / "tokenizer.model").write_bytes(tokenizer)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "vis_output_layer": -1,
                "llm_config": language.facts["config"],
                "vis_encoder_config": tower.facts["config"],
            }
        ),
        "utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def editing_unet() -> UNet2DConditionModel:
    """InstructPix2Pix's UNet with two of its four levels and one of its two blocks, as wide as ComfyUI knows it by."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        in_channels=8,
        block_out_channels=(320, 320),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=8,
    ).requires_grad_(False)


@pytest.fixture(scope="module")
def with_diffusion(sources, editing_unet, tmp_path_factory) -> Path:
    """The model with its two diffusion models, a mapper before each."""
    folder = tmp_path_factory.mktemp("diffusion") / "VisionLLMv2"
    shutil.copytree(sources["one file"], folder)
    width = open_visionllm(folder).parts["language"].config.hidden_size
    mapping = Case(GOLDENS, "gen_edit_mapping")
    shapes = {
        name: [shape[0], width] if name.endswith("emb_proj.0.weight") else shape
        for module in mapping.facts["weights_per_module"].values()
        for name, shape in module["tensors"].items()
    }
    mappers = {name: torch.from_numpy(tensor) for name, tensor in recipe.state_dict({"tensors": shapes}, 2).items()}
    stock = {
        f"{place}.weight": torch.zeros(8, 8)
        for place in (
            "sd.sd_unet.conv_in",
            "sd.sd_vae.post_quant_conv",
            "sd.sd_text_encoder.text_model.x",
            "ip2p.sd_vae.post_quant_conv",
            "ip2p.sd_text_encoder.text_model.x",
        )
    }
    unet = {f"ip2p.sd_unet.{name}": tensor.half() for name, tensor in editing_unet.state_dict().items()}
    save_file({**load_file(folder / "model.safetensors"), **mappers, **stock, **unet}, folder / "model.safetensors")
    return folder


def changed(source: Path, folder: Path, change) -> Path:
    """The folder again, with `change` done to its dict of tensors."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@torch.no_grad()
def states(path: Path) -> torch.Tensor:
    """The hidden states of an image and a few words, read by the model as nodes load it."""
    loaded = load_visionllm(path, device="cpu")
    model, ids = loaded.load(), loaded.token_ids
    seen = model.encode_images(torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0)))
    row = [1, *[ids["<im_patch>"]] * len(seen.tokens), *range(262, 280), ids["[DET]"], ids["[EMB]"]]
    return model.prefill([Prompt(row, [seen.tokens])], ids["<im_patch>"], ids["<region>"])[0][0]


def difference(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((ours - wanted).norm() / wanted.norm()).item()


# --- what is written ---


@pytest.fixture(scope="module")
def wanted(sources) -> torch.Tensor:
    return states(sources["one file"])


@pytest.mark.parametrize("format", quantization.FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_format_reads_as_its_source(form, format, sources, wanted, tmp_path):
    made = convert(sources[form], tmp_path, format)
    assert (
        made.path == tmp_path / f"{sources[form].name}_{format}.safetensors"
        and made.folder == "visionllm"
        and not made.beside
    )
    assert made.path.stat().st_size == made.size and f"(language model of 3 layers, width 48) in {format}" in made.title
    assert difference(states(made.path), wanted) < TOLERANCES[format]


@pytest.mark.parametrize("format", quantization.FORMATS)
def test_the_26b_kind_reads_as_its_source(format, large_make, tmp_path):
    """Its queries, keys and values are one tensor, quantised as it is; the model takes its rows apart, and those of the
    scales.
    """
    made = convert(large_make, tmp_path, format)
    assert difference(states(made.path), states(large_make)) < TOLERANCES[format]
    with safe_open(made.path, "pt") as file:
        packed = file.get_tensor("llm.model.layers.1.attention.wqkv.weight")
        # In 4 bits its sides, which are no multiples of 16, stay in 8
        stored_in = {"int8": torch.int8, "int4": torch.int8, "fp8": torch.float8_e4m3fn, "fp16": torch.float16}
        assert packed.dtype == stored_in[format]
        assert "InternLM2" in file.metadata()["license"]


@pytest.mark.parametrize("format", quantization.FORMATS)
def test_names_stay_and_only_what_is_read_is_written(format, sources, tmp_path):
    made = convert(sources["bin shards"], tmp_path, format)
    opened, source, weights = open_visionllm(made.path), open_visionllm(sources["one file"]), load_file(made.path)
    used = {name for one in source.sources().values() for name in one.names}
    added = {name for name in weights if name.endswith(("weight_scale", "weight_scale_2", "comfy_quant"))}
    assert weights.keys() - added == used | {"spiece_model"} and unused_tensors(opened) == []
    assert not [name for name in weights if "relative_position_index" in name or ".bbox_embed.1." in name]
    left_out = len(source.file.shapes.keys() - used)
    assert made.notes == (f"Left out: {left_out} tensors that are second names of others, or never needed.",)

    layers = {name.removesuffix(".comfy_quant") for name in added if name.endswith(".comfy_quant")}
    parts = [*(f"self_attn.{part}" for part in "qkvo"), *(f"mlp.{part}" for part in ("gate", "up", "down"))]
    matrices = {f"llm.model.layers.{layer}.{part}_proj" for layer in range(3) for part in parts}
    everything = matrices | {"llm.model.embed_tokens"}
    assert layers == {"int8": everything, "int4": everything, "fp8": matrices, "fp16": set()}[format]
    for name in used - {f"{layer}.weight" for layer in layers}:
        assert torch.equal(weights[name], source.file.read(name).half()), name


def test_the_file_needs_nothing_beside_it(sources, tmp_path):
    published = shutil.copytree(sources["one file"], tmp_path / "VisionLLMv2")
    added = {
        name: id
        for name, id in load_visionllm(published, device="cpu").token_ids.items()
        if id >= random_visionllm.PIECES
    }
    (published / "added_tokens.json").write_text(json.dumps(added), "utf-8")
    (tmp_path / "alone").mkdir()
    opened = open_visionllm(convert(published, tmp_path / "alone").path)
    text = "USER: find the [DET], please"
    ours, theirs = opened.tokenizer(), open_visionllm(published).tokenizer()
    assert ours.encode(text) == theirs.encode(text) and ours.ids == theirs.ids and not ours.legacy
    config = dict(opened.config)
    assert config.pop(TOKENIZER) == {"tokenizer_config.json": TOKENIZER_CONFIG, "added_tokens.json": added}
    assert config == json.loads((published / "config.json").read_text("utf-8"))
    with safe_open(opened.file.path, "pt") as file:
        metadata = file.metadata()
    assert metadata["quantization"] == "int8_tensorwise" and metadata["source"].startswith(
        "VisionLLMv2, from OpenGVLab/VisionLLMv2"
    )
    assert "MuLan Nodes 0." in metadata["made_by"] and "LLaMA" in metadata["license"]


def test_a_converted_file_in_float16_can_be_converted_on(sources, wanted, tmp_path):
    half = convert(sources["one file"], tmp_path, "fp16").path
    again = convert(half, tmp_path / "again.safetensors", "int8").path
    assert difference(states(again), wanted) < TOLERANCES["int8"]
    assert open_visionllm(again).config == open_visionllm(half).config
    with pytest.raises(
        WrongFileError, match="again.safetensors .* already holds quantized weights .*: convert the published"
    ):
        convert(again, tmp_path / "third.safetensors")


def test_values_too_large_for_float16_are_kept_in_bfloat16(sources, tmp_path):
    name = "gdino.model.enc_output.bias"

    def enlarge(tensors):
        tensors[name][3] = 1e5

    made = convert(changed(sources["one file"], tmp_path / "Large", enlarge), tmp_path)
    weights = load_file(made.path)
    assert weights[name].dtype == torch.bfloat16 and abs(weights[name][3].item() - 1e5) < 500
    assert {tensor.dtype for other, tensor in weights.items() if other.startswith("gdino.") and other != name} == {
        torch.float16
    }
    assert (
        f"In bfloat16, because their values are too large for float16: 1 tensors, the first is ['{name}']."
        in made.notes
    )


def test_unknown_tensors_are_left_out_and_reported(sources, tmp_path):
    made = convert(
        changed(
            sources["one file"], tmp_path / "Stray", lambda tensors: tensors.update({"optimizer.step": torch.ones(3)})
        ),
        tmp_path,
    )
    assert "Left out: 1 tensors that no part of the model reads, the first is ['optimizer.step']." in made.notes
    assert "optimizer.step" not in load_file(made.path)


# --- the UNet that edits ---


@torch.no_grad()
def test_comfyui_loads_the_editing_unet(with_diffusion, editing_unet, tmp_path):
    made = convert(with_diffusion, tmp_path)
    (unet,) = made.beside
    assert unet.path == tmp_path / "VisionLLMv2_instructpix2pix.safetensors" and unet.folder == "diffusion_models"
    assert unet.path.stat().st_size == unet.size and any(
        note.startswith("Left out: Stable Diffusion 1.5 as it is published") and "5 tensors" in note
        for note in made.notes
    )
    assert not [name for name in open_tensors(made.path).shapes if ".sd_" in name]
    assert {"generate", "edit"} < open_visionllm(made.path).parts.keys()

    model = comfy.sd.load_diffusion_model(str(unet.path)).model
    assert isinstance(model, comfy.model_base.SD15_instructpix2pix)
    generator = torch.Generator().manual_seed(1)
    latents, context = (torch.randn(shape, generator=generator) for shape in ((1, 8, 16, 16), (1, 77, 768)))
    ours = model.diffusion_model.float()(latents, torch.tensor([300.0]), context)
    assert difference(ours, editing_unet(latents, 300, context).sample) < 2e-3


def test_a_unet_that_is_not_whole_is_named(with_diffusion, tmp_path):
    def lose(tensors):
        del tensors["ip2p.sd_unet.mid_block.resnets.1.conv1.weight"]

    def four_channels(tensors):
        tensors["ip2p.sd_unet.conv_in.weight"] = tensors["ip2p.sd_unet.conv_in.weight"][:, :4].contiguous()

    for name, change, words in (
        (
            "Lost",
            lose,
            "incomplete or damaged: 1 tensors .* the first is middle_block.2.in_layers.2.weight in ComfyUI's names",
        ),
        ("Plain", four_channels, "the UNet .* is not InstructPix2Pix's of Stable Diffusion 1.5"),
    ):
        with pytest.raises(WrongFileError, match=words):
            convert(changed(with_diffusion, tmp_path / name, change), tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("out*"))


# --- whole or not at all ---


def test_both_files_appear_or_none(with_diffusion, tmp_path):
    seen = []

    def stopping(done):
        seen.append(done)
        if done.tensors > done.all_tensors - 3:
            assert len(list(tmp_path.glob("*.unfinished"))) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(with_diffusion, tmp_path, progress=stopping)
    assert not list(tmp_path.iterdir())
    made = convert(with_diffusion, tmp_path, progress=seen.append)
    last = seen[-1]
    assert last.tensors == last.all_tensors and last.bytes == last.all_bytes == made.size + made.beside[0].size
    made.path.unlink()
    with pytest.raises(CannotWriteError, match="VisionLLMv2_instructpix2pix.safetensors already exists: delete it"):
        convert(with_diffusion, tmp_path)
    assert convert(with_diffusion, tmp_path, overwrite=True) == made


def test_a_disk_with_room_for_one_of_two_files_is_reported(with_diffusion, tmp_path, monkeypatch):
    free = convert(with_diffusion, tmp_path).beside[0].size + 1000
    monkeypatch.setattr(
        "mulan_nodes.mulan.checkpoints.safetensors_writer.shutil.disk_usage", lambda _: SimpleNamespace(free=free)
    )
    with pytest.raises(OSError, match="x.safetensors with x_instructpix2pix.safetensors takes .* make room"):
        convert(with_diffusion, tmp_path / "x.safetensors")
    assert not list(tmp_path.glob("x*"))


# --- refusals ---


@pytest.mark.parametrize("format", quantization.FORMATS)
@pytest.mark.parametrize("name", ["llm.model.layers.1.mlp.up_proj.weight", "vl_bridge.0.bias"])
def test_damaged_weights_are_named(name, format, sources, tmp_path):
    def damage(tensors):
        tensors[name].view(-1)[5] = float("nan")

    damaged = changed(sources["one file"], tmp_path / "Damaged", damage)
    with pytest.raises(
        WrongFileError,
        match=rf"Damaged .* is damaged: {name} holds values that are infinite or not a number \(NaN\). Download it "
        rf"again",
    ):
        convert(damaged, tmp_path / "out.safetensors", format)
    assert not list(tmp_path.glob("out*"))


def test_incomplete_and_foreign_sources_are_named(sources, tmp_path):
    def copy(form, name):
        return shutil.copytree(sources[form], tmp_path / name)

    cut = copy("safetensors shards", "Cut")
    (cut / "model-00002-of-00002.safetensors").unlink()
    short = copy("safetensors shards", "Short")
    shard = short / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    short_bin = copy("bin shards", "ShortBin")
    shard = short_bin / "pytorch_model-00001-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1000])
    bare = copy("one file", "Bare")
    (bare / "tokenizer.model").unlink()
    foreign = copy("one file", "Foreign")
    shutil.copy(ROOT / "dev.py", foreign / "tokenizer.model")
    larger = copy("one file", "Larger")
    (larger / "tokenizer.model").write_bytes(random_visionllm.sentencepiece_model(random_visionllm.PIECES + 30))
    json_cut = copy("one file", "JsonCut")
    (json_cut / "tokenizer_config.json").write_text('{"legacy": tr', "utf-8")
    config_cut = copy("one file", "ConfigCut")
    (config_cut / "config.json").write_text('{"llm_config"', "utf-8")
    holes = changed(
        sources["one file"], tmp_path / "Holes", lambda tensors: tensors.pop("llm.model.layers.1.mlp.up_proj.weight")
    )
    clip = tmp_path / "clip.safetensors"
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(4, 768)}, clip)
    for path, words in (
        (cut, "lacks 1 of its shards, the first is model-00002-of-00002.safetensors"),
        (short, "cut short or damaged"),
        (short_bin, "cut short or damaged"),
        (bare, "Bare .* has no tokenizer"),
        (foreign, "tokenizer.model cannot be used: .* not a sentencepiece"),
        (larger, "tokenizer.model has .* tokens, but the language model embeds .* another model's"),
        (json_cut, "tokenizer_config.json .* is not valid JSON"),
        (config_cut, "config.json is not valid JSON"),
        (holes, "incomplete: 1 tensors are missing, the first is llm.model.layers.1.mlp.up_proj.weight"),
        (clip, "clip.safetensors .* is a CLIP-L text encoder; expected InternVL, .* or VisionLLM v2, from OpenGVLab"),
        (tmp_path / "gone", "source not found: .*gone"),
    ):
        with pytest.raises(WrongFileError, match=words):
            convert(path, tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("out*"))


def test_refused_targets(sources, tmp_path):
    source = sources["one file"]
    before = convert(source, tmp_path).path.read_bytes()
    for target, words in (
        (tmp_path, "VisionLLMv2-tiny_int8.safetensors already exists: delete it"),
        (source / "x.safetensors", "is in the source folder"),
        (tmp_path / "x.pt", "name a .safetensors file"),
        (tmp_path / "no" / "x.safetensors", "folder .*no does not exist"),
    ):
        with pytest.raises(CannotWriteError, match=words):
            convert(source, target)
    with pytest.raises(CannotWriteError, match="format is 'int2', expected one of int8, int4, fp8, fp16"):
        convert(source, tmp_path / "x.safetensors", "int2")
    assert convert(source, tmp_path, overwrite=True).path.read_bytes() == before


def test_mulan_s_loader_says_what_it_is(sources, tmp_path):
    for path in (sources["bin shards"], convert(sources["one file"], tmp_path).path):
        with pytest.raises(
            WrongFileError,
            match="is a VisionLLM v2 model .it belongs in models/visionllm.; expected InternVL's LLaMA text encoder",
        ):
            open_text_encoder(path)


# --- the command ---


def test_the_command_knows_it_by_its_tensors(with_diffusion, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(with_diffusion), "--format", "fp8"]) == 0
    printed = capsys.readouterr().out
    for written, place in (("VisionLLMv2_fp8", "visionllm"), ("VisionLLMv2_instructpix2pix", "diffusion_models")):
        assert (
            tmp_path / f"{written}.safetensors"
        ).is_file() and f"Put {written}.safetensors into models/{place}." in printed
    assert "Left out: Stable Diffusion 1.5 as it is published" in printed
    with pytest.raises(SystemExit, match="Nothing was written: .*VisionLLMv2_fp8.safetensors already exists"):
        main([str(with_diffusion), "--format", "fp8"])
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    with pytest.raises(SystemExit, match="Nothing was written: page.safetensors .* it is a web page"):
        main(["page.safetensors"])
