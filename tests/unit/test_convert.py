"""The converter: what it writes is its source in fewer bytes, appears whole or not at all, and takes little memory."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.quant_ops
import comfy.utils
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints import internlm2, nvfp4, quantization
from mulan_nodes.mulan.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile
from mulan_nodes.mulan.checkpoints.weight_source import with_scales
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published
from mulan_nodes.mulan.conditioning.clip import load_clip
from mulan_nodes.mulan.conditioning.model_files import WrongFileError, open_adapter, open_text_encoder
from mulan_nodes.mulan.conversion import encoder_error
from mulan_nodes.mulan.conversion.__main__ import main
from mulan_nodes.mulan.conversion.converters import CannotWriteError, convert, plan_conversion
from mulan_nodes.mulan.conversion.output_files import Target
from mulan_nodes.tools.bench.weights import Sizes, sentencepiece_model

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "parity" / "goldens" / "mulan"
TOKENIZER = GOLDENS / "tokenizer" / "tokenizer.model"
VOCABULARY, WIDTH, FEED_FORWARD, LAYERS, PROJECTED, RANK = 1014, 256, 512, 2, 24, 4
# Relative errors of contexts and of states; measured on these weights: int8 0.013, int4 0.13, fp8 0.036, fp16 2e-4.
TOLERANCES = {"int8": 0.03, "int4": 0.25, "fp8": 0.08, "fp16": 2e-3}
SOURCES = ("safetensors folder", "bin folder", "pth")


# --- sources ---


def random_llama() -> dict[str, torch.Tensor]:
    """A small LLaMA (two heads of 128) under ComfyUI's names, in float16 as published."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale):
        return (torch.randn(shape, generator=generator) * scale).half()

    weights = {
        "model.embed_tokens.weight": normal(VOCABULARY, WIDTH, scale=1.0),
        "model.norm.weight": 1 + normal(WIDTH, scale=0.1),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        weights |= {f"{at}self_attn.{p}_proj.weight": normal(WIDTH, WIDTH, scale=WIDTH**-0.5) for p in "qkvo"}
        weights |= {f"{at}mlp.{p}_proj.weight": normal(FEED_FORWARD, WIDTH, scale=WIDTH**-0.5) for p in ("gate", "up")}
        weights |= {f"{at}mlp.down_proj.weight": normal(WIDTH, FEED_FORWARD, scale=FEED_FORWARD**-0.5)}
        weights |= {
            f"{at}{norm}_layernorm.weight": 1 + normal(WIDTH, scale=0.1) for norm in ("input", "post_attention")
        }
    return weights


def write_folder(folder: Path, weights: dict[str, torch.Tensor], suffix: str) -> Path:
    """As InternVL is published: two shards, among tensors that text never needs."""
    folder.mkdir()
    tensors = {f"qllama.{name}": tensor for name, tensor in weights.items() if name.startswith("model.")}
    tensors |= {name: tensor for name, tensor in weights.items() if not name.startswith("model.")}
    tensors |= {
        "vision_model.embeddings.class_embedding": torch.zeros(1, 1, 8),
        "qllama.lm_head.weight": torch.zeros(VOCABULARY, 8),
        "qllama.model.layers.0.cross_attn.q_proj.weight": torch.zeros(8, 8),
    }
    stem, save = ("model", save_file) if suffix == ".safetensors" else ("pytorch_model", torch.save)
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-{number:05}-of-00002{suffix}"
        save({name: tensors[name].contiguous() for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    (folder / "config.json").write_text(
        json.dumps({"qllama_config": {"num_attention_heads": 2, "rms_norm_eps": 1e-6}}), "utf-8"
    )
    shutil.copy(TOKENIZER, folder)
    return folder


def write_internvl_c(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """As internvl_c_13b_224px.pth: the LLaMA under ``transformer.``, the LoRA of q and v apart, vision and leftovers of
    training beside it.
    """
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "text_projection": weights["text_projection"],
        "logit_scale": torch.ones(()),
        "cls_token": torch.zeros(1, 1, 8),
        "blocks.0.attn.qkv.weight": torch.zeros(24, 8),
        "mask_token": torch.zeros(1, 1, 8),
    }
    for name, tensor in weights.items():
        if not name.startswith("model."):
            continue
        stored = "transformer." + name.removeprefix("model.")
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            down, up = (torch.randn(*shape, generator=generator) * 0.02 for shape in ((RANK, WIDTH), (WIDTH, RANK)))
            tensor = tensor.float() - 32 / RANK * (up @ down)
            tensors |= {
                stored.replace(".weight", ".lora_A.default.weight"): down,
                stored.replace(".weight", ".lora_B.default.weight"): up,
            }
        tensors[stored] = tensor
        tensors["transformer.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(64)
    torch.save(tensors, path)
    (path.parent / "chinese_alpaca_lora_7b").mkdir()
    shutil.copy(TOKENIZER, path.parent / "chinese_alpaca_lora_7b")
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """One text encoder in every form it is published in."""
    folder = tmp_path_factory.mktemp("sources")
    weights = random_llama()
    weights["text_projection"] = (
        torch.randn(WIDTH, PROJECTED, generator=torch.Generator().manual_seed(2)) * 0.05
    ).half()
    return {
        "safetensors folder": write_folder(folder / "InternVL-small", weights, ".safetensors"),
        "bin folder": write_folder(folder / "InternVL-small-bin", weights, ".bin"),
        "pth": write_internvl_c(folder / "internvl_c_small.pth", weights),
    }


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "sd15.safetensors"
    torch.manual_seed(3)
    module = LanguageAdapter(AdapterShape(text_hidden_size=WIDTH, context_dim=768, num_queries=8, intermediate_size=64))
    torch.nn.init.normal_(module.queries)
    save_file(to_published(dict(module.state_dict())), path)
    return path


@pytest.fixture(scope="module")
def drawn(sources, adapter) -> torch.Tensor:
    """The context of a prompt by the published folder."""
    return load_clip(sources["safetensors folder"], adapter).encode("two cats on a red roof")


def difference(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((ours - wanted).norm() / wanted.norm()).item()


# --- what is written ---


@pytest.mark.parametrize("format", quantization.FORMATS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_form_in_every_format_encodes_as_its_source(source, format, sources, adapter, drawn, tmp_path):
    made = convert(sources[source], tmp_path, format)
    assert made.path.name == f"{sources[source].stem}_text_{format}.safetensors" and made.folder == "text_encoders"
    assert made.path.stat().st_size == made.size
    assert difference(load_clip(made.path, adapter).encode("two cats on a red roof"), drawn) < TOLERANCES[format]


@pytest.mark.parametrize(
    "format, table, matrix",
    [
        ("int8", torch.int8, torch.int8),
        ("int4", torch.int8, torch.uint8),
        ("fp8", torch.float16, torch.float8_e4m3fn),
        ("fp16", torch.float16, torch.float16),
    ],
)
def test_the_file_is_in_comfyui_s_own_format(format, table, matrix, sources, tmp_path):
    path = convert(sources["bin folder"], tmp_path / "small.safetensors", format).path
    weights = load_file(path)
    assert (
        weights["model.embed_tokens.weight"].dtype == table
        and weights["model.layers.1.mlp.down_proj.weight"].dtype == matrix
    )
    assert {tensor.dtype for name, tensor in weights.items() if "norm" in name} == {torch.float16}
    assert bytes(weights["spiece_model"].numpy()) == TOKENIZER.read_bytes()
    assert torch.equal(weights["text_projection"], open_text_encoder(sources["bin folder"]).text_projection())
    assert not [
        name
        for name in weights
        if any(part in name for part in ("cross_attn", "vision", "lm_head", "qllama", "lora", "rotary"))
    ]

    marked = {
        name.removesuffix(".comfy_quant"): json.loads(tensor.numpy().tobytes())
        for name, tensor in weights.items()
        if ".comfy_quant" in name
    }
    expected = {"int8": 7 * LAYERS + 1, "int4": 7 * LAYERS + 1, "fp8": 7 * LAYERS, "fp16": 0}[format]
    assert len(marked) == expected
    source = open_text_encoder(sources["bin folder"]).state_dict()
    for layer, mark in marked.items():
        layout = comfy.quant_ops.get_layout_class(comfy.quant_ops.QUANT_ALGOS[mark["format"]]["comfy_tensor_layout"])
        weight, scale = weights[f"{layer}.weight"], weights[f"{layer}.weight_scale"]
        wanted = source[f"{layer}.weight"].float()
        if mark["format"] == "nvfp4":
            scales = {"scale": weights[f"{layer}.weight_scale_2"], "block_scale": scale}
            assert scale.dtype == torch.float8_e4m3fn and scales["scale"].dtype == torch.float32
        else:
            scales = {"scale": scale}
            per_row = mark["format"] == "int8_tensorwise"
            assert scale.dtype == torch.float32 and scale.shape == ((len(weight), 1) if per_row else ())
            assert ("convrot" in mark) == (per_row and layer.endswith(("down_proj", "embed_tokens")))
            scales |= {name: value for name, value in mark.items() if name != "format"}
        params = layout.Params(**scales, orig_dtype=torch.float32, orig_shape=tuple(wanted.shape))
        most = {"int8_tensorwise": 0.012, "nvfp4": 0.085, "float8_e4m3fn": 0.035}[mark["format"]]
        assert difference(layout.dequantize(weight, params), wanted) < most
    converted, metadata = comfy.utils.convert_old_quants(dict(weights), "", metadata={})
    assert (comfy.utils.detect_layer_quantization(converted, "") is not None) == bool(marked)
    assert converted.keys() == weights.keys()


def test_every_tensor_is_aligned_to_its_element_size(sources, tmp_path):
    """Readers that map the file need it; the marks, 29 bytes each, must not push the others off."""
    path = convert(sources["pth"], tmp_path, "int8").path
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    assert (8 + length) % 8 == 0 and header["model.layers.0.self_attn.q_proj.comfy_quant"]["shape"] == [29]
    sizes = {"F32": 4, "F16": 2, "I8": 1, "U8": 1}
    assert not [
        name
        for name, entry in header.items()
        if name != "__metadata__" and entry["data_offsets"][0] % sizes[entry["dtype"]]
    ]


def test_metadata(sources, tmp_path):
    with safe_open(convert(sources["safetensors folder"], tmp_path, "fp8").path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"]) == {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "rms_norm_eps": 1e-6,
    }
    assert (
        metadata["format"] == "pt"
        and metadata["quantization"] == "float8_e4m3fn"
        and "MuLan Nodes 0." in metadata["made_by"]
    )
    assert metadata["source"].startswith("InternVL-small, from OpenGVLab/InternVL-14B-224px") and metadata["license"]


def test_numbers_are_rounded_as_comfyui_rounds_them():
    weight = torch.randn(300, 70, generator=torch.Generator().manual_seed(4))
    weight[7] = 0
    for ours, (wanted, params) in (
        (quantization.INT8, comfy.quant_ops.TensorWiseINT8Layout.quantize(weight, per_channel=True)),
        (quantization.FP8, comfy.quant_ops.TensorCoreFP8Layout.quantize(weight, scale="recalculate")),
    ):
        parts = dict.fromkeys(quantization.tensor_layout("a.weight", tuple(weight.shape), ours), None)
        for name, rows, _ in quantization.quantize_chunks("a.weight", weight, ours):
            parts[name] = rows
        assert torch.equal(parts["a.weight"].float(), wanted.float())
        kept = torch.arange(300) != 7 if ours.per_row else ...  # a row of zeros may have any scale
        assert torch.allclose(parts["a.weight_scale"][kept], params.scale[kept], rtol=1e-6)


def written(weight: torch.Tensor, form: quantization.Quantization) -> dict[str, torch.Tensor]:
    """The tensors that a weight becomes, by the end of their names, put together from their chunks."""
    layout = quantization.tensor_layout("a.weight", tuple(weight.shape), form)
    parts = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in layout.items()}
    for name, rows, first_row in quantization.quantize_chunks("a.weight", weight, form):
        (parts[name] if rows.ndim == 0 else parts[name][first_row : first_row + len(rows)]).copy_(rows)
    return {name.removeprefix("a."): part for name, part in parts.items()}


def read_back(parts: dict[str, torch.Tensor], shape: torch.Size, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight as ComfyUI's own layout of nvfp4 gives it."""
    layout = comfy.quant_ops.TensorCoreNVFP4Layout
    scales = {"scale": parts["weight_scale_2"], "block_scale": parts["weight_scale"]}
    return layout.dequantize(parts["weight"], layout.Params(**scales, orig_dtype=dtype, orig_shape=tuple(shape)))


@pytest.mark.parametrize("shape", [(16, 16), (144, 80), (272, 1024)])
def test_what_comfyui_reads_back_of_4_bits_is_what_was_rounded(shape):
    """In every dtype the same, nearer to the weights than ComfyUI's own rounding; rows of zeros, large, tiny ones."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(8)) * 0.02
    weight[3], weight[5] = 0, weight[5] * 50
    weight[7, :16] = 1e-12
    kept = weight.clone()
    parts = written(weight, quantization.INT4)
    assert torch.equal(weight, kept), "a source is read, never changed"
    found = read_back(parts, weight.shape)
    assert not found[3].any() and (found[7, :16] - weight[7, :16]).abs().max() < 1e-5
    layout = comfy.quant_ops.TensorCoreNVFP4Layout
    usual = layout.dequantize(*layout.quantize(weight))
    assert difference(found, weight) < 0.92 * difference(usual, weight)
    blocks = weight.unflatten(1, (-1, nvfp4.BLOCK))
    scales = nvfp4.untiled(parts["weight_scale"].view(torch.uint8), shape).contiguous().view(torch.float8_e4m3fn)
    scales = scales.float() * parts["weight_scale_2"]
    assert torch.equal(found, (nvfp4.round_blocks(blocks, scales) * scales[..., None]).flatten(1))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(read_back(parts, weight.shape, dtype).float(), found)


def test_weights_that_are_no_whole_blocks_stay_in_8_bits():
    for shape in ((48, 40), (40, 48), (1, 16)):
        layout = quantization.tensor_layout("a.weight", shape, quantization.INT4)
        assert layout == quantization.tensor_layout("a.weight", shape, quantization.INT8)
    for name in ("model.embed_tokens.weight", "model.tok_embeddings.weight"):  # ComfyUI looks no rows of blocks up
        assert quantization.tensor_layout(name, (32, 32), quantization.INT4)[name].dtype == torch.int8


def test_a_4_bit_weight_goes_in_whole_tiles(monkeypatch):
    weight = torch.randn(304, 32, generator=torch.Generator().manual_seed(9))
    whole = written(weight, quantization.INT4)
    monkeypatch.setattr(quantization, "CHUNK_ELEMENTS", 140 * 32)
    chunks = [first for name, _, first in quantization.quantize_chunks("a.weight", weight, quantization.INT4) if first]
    assert chunks == [128, 128, 256, 256]
    again = written(weight, quantization.INT4)
    assert torch.equal(read_back(again, weight.shape), read_back(whole, weight.shape))


def test_rows_of_4_bits_are_taken_apart_with_their_scales():
    """As of InternLM2, whose queries, keys and values are one tensor."""
    packed = torch.randn(8 * 64, 128, generator=torch.Generator().manual_seed(10))
    parts = written(packed, quantization.INT4)
    stored = {f"model.layers.0.attention.wqkv.{end}": part for end, part in parts.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    names = internlm2.sources(1, num_key_value_heads=2, head_dim=64)
    for part in "qkv":
        layer = f"layers.0.self_attn.{part}_proj."
        sources = with_scales({f"{layer}weight": names[f"{layer}weight"]}, shapes)
        found = {name.removeprefix(layer): source.read(stored.__getitem__) for name, source in sources.items()}
        wanted = internlm2.split(read_back(parts, packed.shape), part, 2, 64)
        assert torch.equal(read_back(found, wanted.shape), wanted)


def test_the_published_text_encoder_takes_less_than_3_9_gb_in_4_bits(tmp_path):
    """By the plan of a folder at its full size, of which nothing is read."""
    sizes = Sizes(layers=32)
    shapes = {"model.embed_tokens.weight": (sizes.vocabulary, sizes.width), "model.norm.weight": (sizes.width,)}
    for at in (f"model.layers.{layer}." for layer in range(sizes.layers)):
        shapes |= {f"{at}self_attn.{p}_proj.weight": (sizes.width, sizes.width) for p in "qkvo"}
        shapes |= {f"{at}mlp.{p}_proj.weight": (sizes.feed_forward, sizes.width) for p in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (sizes.width, sizes.feed_forward)}
        shapes |= {f"{at}{norm}_layernorm.weight": (sizes.width,) for norm in ("input", "post_attention")}
    pieces = torch.frombuffer(bytearray(sentencepiece_model(sizes.vocabulary)), dtype=torch.uint8)
    source = TensorFile(
        tmp_path / "InternVL-14B-224px", {**shapes, "spiece_model": tuple(pieces.shape)}, lambda name: pieces, {}, {}
    )
    sizes_in = {}
    for format in quantization.FORMATS:
        (output,) = plan_conversion(source, Target(source.path, tmp_path / "x.safetensors", False), format).outputs
        sizes_in[format] = SafetensorsWriter(output.path, output.layout, output.metadata).size / 1e9
    assert sizes_in["int4"] == pytest.approx(3.85, abs=0.01) and sizes_in["int8"] == pytest.approx(6.69, abs=0.01)


def test_a_loaded_text_encoder_keeps_its_4_bits(sources, adapter, tmp_path):
    made = convert(sources["bin folder"], tmp_path, "int4")
    clip = load_clip(made.path, adapter)
    llama = clip.cond_stage_model.internvl.transformer.model
    weight = llama.layers[1].mlp.down_proj.weight
    assert weight.shape == (WIDTH, FEED_FORWARD) and weight._qdata.dtype == torch.uint8
    assert weight._qdata.shape == (WIDTH, FEED_FORWARD // 2) and llama.embed_tokens.weight._qdata.dtype == torch.int8
    held = sum(tensor.nbytes for name, tensor in llama.state_dict().items())
    assert held < 1.02 * made.size


def test_a_patch_acts_on_4_bits_as_on_their_source(sources, adapter, tmp_path):
    """As a LoRA's, on a layer in blocks and on the embedding table."""
    moved = []
    for path in (sources["bin folder"], convert(sources["bin folder"], tmp_path, "int4").path):
        plain, patched = (load_clip(path, adapter) for _ in range(2))
        generator = torch.Generator().manual_seed(11)
        sizes = {"embed_tokens": (VOCABULARY, WIDTH), "layers.1.mlp.up_proj": (FEED_FORWARD, WIDTH)}
        patches = {
            f"internvl.transformer.model.{layer}.weight": ("diff", (torch.randn(shape, generator=generator) * 0.1,))
            for layer, shape in sizes.items()
        }
        assert set(patched.add_patches(patches, 1.0)) == set(patches)
        moved.append(patched.encode("two cats") - plain.encode("two cats"))
    assert torch.nn.functional.cosine_similarity(*(each.flatten() for each in moved), dim=0) > 0.85


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("weight_scale_2", None, "weight_scale_2 is missing"),
        ("weight_scale_2", torch.ones(2), r"weight_scale_2 has the shape \[2\], expected \[\] in nvfp4"),
        ("weight_scale_2", torch.ones((), dtype=torch.int32), "weight_scale_2 holds int32"),
        ("weight_scale", torch.ones(256, 16), "weight_scale holds float32, expected float8_e4m3fn"),
        ("weight_scale", torch.ones(256, 16).to(torch.float8_e4m3fn), r"weight_scale has the shape \[256, 16\]"),
        ("weight", torch.ones(256, 256).to(torch.int8), "weight holds int8, expected uint8"),
        ("weight", torch.ones(256, 128).to(torch.uint8), "weight_scale has the shape .* in nvfp4"),
    ],
)
def test_damaged_4_bits_are_named_before_they_are_read(name, value, words, sources, tmp_path):
    weights = load_file(convert(sources["bin folder"], tmp_path, "int4").path)
    damaged = f"model.layers.1.mlp.down_proj.{name}"  # [256, 512]
    weights = {stored: tensor for stored, tensor in weights.items() if stored != damaged}
    save_file(weights if value is None else {**weights, damaged: value}, tmp_path / "damaged.safetensors")
    with pytest.raises(WrongFileError, match=f"damaged.safetensors .*: model.layers.1.mlp.down_proj.{words}"):
        open_text_encoder(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize(
    "mark, words",
    [
        ({"convrot_groupsize": 0}, "rotates groups of 0 columns"),
        ({"convrot_groupsize": -256}, "rotates groups of -256 columns"),
        ({"convrot_groupsize": 2}, "rotates groups of 2 columns"),
        ({"convrot_groupsize": 128}, "rotates groups of 128 columns"),
        ({"convrot_groupsize": 1024}, "rotates groups of 1024 columns, .* divides the 512 columns"),
        ({"convrot_groupsize": 4**40}, "rotates groups of 1208925819614629174706176 columns"),
        ({"convrot_groupsize": "all"}, "rotates groups of all columns"),
        ({"convrot_groupsize": [256]}, r"rotates groups of \[256\] columns"),
        ({"convrot_groupsize": None}, "rotates groups of None columns"),
        ({"convrot": False, "params": {"convrot": True, "convrot_groupsize": 7}}, None),
        ({"convrot": None, "params": {"convrot": True, "convrot_groupsize": 7}}, None),
        ({"format": []}, "names no quantization"),
    ],
    ids=str,
)
def test_a_rotation_that_cannot_be_is_named_before_it_is_read(mark, words, sources, tmp_path):
    weights = load_file(convert(sources["bin folder"], tmp_path, "int8").path)
    name = "model.layers.1.mlp.down_proj.comfy_quant"
    content = json.loads(bytes(weights[name].tolist()))
    assert content.keys() == {"format", "convrot", "convrot_groupsize"}
    marks = [content | mark]
    if "convrot_groupsize" in mark:  # ComfyUI also reads it from the layer's params
        marks.append({"format": content["format"], "params": {"convrot": True, **mark}})
    for changed in marks:
        damaged = {**weights, name: torch.tensor(list(json.dumps(changed).encode()), dtype=torch.uint8)}
        save_file(damaged, tmp_path / "damaged.safetensors")
        if words is None:
            open_text_encoder(tmp_path / "damaged.safetensors")
            continue
        with pytest.raises(WrongFileError, match=f"damaged.safetensors .*: {name} {words}.*Convert it again"):
            open_text_encoder(tmp_path / "damaged.safetensors")


OUTLIERS = torch.tensor([3, 50, 101, 170, 200, 250]), torch.tensor([20.0, 30.0, 50.0, 100.0, 40.0, 25.0])


def with_outliers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same LLaMA with what large ones have: a few channels 20 to 100 times the others in everything that is added
    to the hidden states, which the norms take back in part, and the row of BOS far beyond the others.
    """
    channels, times = OUTLIERS
    planted = {name: tensor.clone() for name, tensor in weights.items()}
    for name, tensor in planted.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[channels] = (tensor[channels].float() * times[:, None]).half()
        elif name.endswith("layernorm.weight"):
            tensor[channels] = (tensor[channels].float() / times.sqrt()).half()
    table = planted["model.embed_tokens.weight"]
    table[:, channels] = (table[:, channels].float() * times).half()
    table[1, channels[:2]] += torch.tensor([1000.0, -600.0]).half()
    return planted


@pytest.mark.parametrize("planted", [False, True], ids=["plain", "outliers"])
def test_contexts_in_4_bits_point_where_the_source_s_do(planted, adapter, tmp_path):
    weights = random_llama()
    source = write_folder(tmp_path / "Source", with_outliers(weights) if planted else weights, ".safetensors")
    made = convert(source, tmp_path, "int4")
    contexts = [load_clip(path, adapter).encode("two cats on a red roof") for path in (source, made.path)]
    cosines = torch.nn.functional.cosine_similarity(*contexts, dim=-1)
    assert cosines.min() > 0.99, cosines.min()


def test_a_large_tensor_goes_in_chunks(monkeypatch):
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(5))
    whole = {
        form: list(quantization.quantize_chunks("a.weight", weight, form)) for form in quantization.FORMATS.values()
    }
    monkeypatch.setattr(quantization, "CHUNK_ELEMENTS", 7 * 8)
    for form, ((*_, (_, wanted, _))) in whole.items():
        runs = [
            (first, rows)
            for name, rows, first in quantization.quantize_chunks("a.weight", weight, form)
            if name == "a.weight"
        ]
        assert [first for first, _ in runs] == list(range(0, 50, 7))
        assert torch.equal(torch.cat([rows for _, rows in runs]).float(), wanted.float())


def test_a_converted_encoder_that_is_float16_can_be_converted_on(sources, tmp_path):
    half = convert(sources["bin folder"], tmp_path, "fp16").path
    again, direct = convert(half, tmp_path, "int8").path, convert(sources["bin folder"], tmp_path, "int8").path
    ours, wanted = load_file(again), load_file(direct)
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family, file", [("sd15", "tiny_sd15_adapter.safetensors"), ("pixart", "pixart_tiny.pth")])
def test_an_adapter_keeps_its_names_and_values(family, file, tiny_models, tmp_path):
    published = tmp_path / f"{family}_published.pth"
    if file in tiny_models:
        torch.save(load_file(tiny_models[file]), published)
    else:
        shutil.copy(GOLDENS / "weights" / file, published)
    made = convert(published, tmp_path)
    assert made.path == tmp_path / f"{family}_published.safetensors" and made.folder == "mulan" and made.source is None
    ours, theirs = load_file(made.path), torch.load(published, weights_only=True)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with safe_open(made.path, "pt") as converted:
        assert converted.metadata()["family"] == family == open_adapter(made.path).family.name


# --- the comparison ---


def test_the_comparison_computes_what_graphs_compute(sources, adapter, tmp_path):
    """Layer by layer from the disk, yet the very states of a loaded CLIP; for the quantised file too."""
    windows = [[1, 50, 60, 70, 2] + [0] * 75, [1, 99, 2] + [0] * 77]
    for path in (sources["safetensors folder"], convert(sources["safetensors folder"], tmp_path, "int8").path):
        loaded = load_clip(path, adapter)
        loaded.load_model()
        wanted = loaded.cond_stage_model.internvl.hidden_states(windows)
        streamed = encoder_error.hidden_states(open_text_encoder(path), windows)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(streamed, wanted, strict=True))


@pytest.mark.parametrize("format", quantization.FORMATS)
def test_the_error_is_reported_for_ten_languages(format, sources, tmp_path):
    made = convert(sources["pth"], tmp_path, format)
    steps = []
    errors = encoder_error.encoder_error(open_text_encoder(made.path), made.source, lambda *step: steps.append(step))
    assert len(errors) == 10 and max(errors.values()) < TOLERANCES[format]
    assert steps == [(done, 2 * LAYERS) for done in range(1, 2 * LAYERS + 1)]
    if format == "fp8":
        int8 = convert(sources["pth"], tmp_path, "int8")
        better = encoder_error.encoder_error(open_text_encoder(int8.path), int8.source)
        assert all(better[language] < errors[language] for language in errors)


def test_a_wrong_layer_shows_in_the_error(sources, tmp_path):
    made = convert(sources["bin folder"], tmp_path, "int8")
    weights = load_file(made.path)
    weights["model.layers.1.mlp.up_proj.weight_scale"] *= 2
    with safe_open(made.path, "pt") as file:
        save_file(weights, tmp_path / "broken.safetensors", metadata=file.metadata())
    assert (
        min(encoder_error.encoder_error(open_text_encoder(tmp_path / "broken.safetensors"), made.source).values()) > 0.2
    )


def test_the_sentences_are_of_ten_languages_and_fit_the_window():
    assert len(set(encoder_error.SENTENCES.values())) == 10
    scripts = {"Chinese": "清", "Russian": "р", "Arabic": "ص", "Hindi": "म", "Japanese": "の", "Korean": "새"}
    assert all(sign in encoder_error.SENTENCES[language] for language, sign in scripts.items())


# --- whole or not at all ---


def test_progress_ends_at_the_whole_file(sources, tmp_path):
    seen = []
    made = convert(sources["safetensors folder"], tmp_path, progress=seen.append)
    assert [step.bytes for step in seen] == sorted(step.bytes for step in seen)
    last = seen[-1]
    assert last.bytes == last.all_bytes == made.size and last.tensors == last.all_tensors == len(load_file(made.path))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_conversion_that_is_stopped_leaves_nothing(stop, sources, tmp_path):
    def stopping(done):
        if done.bytes > done.all_bytes // 2:
            raise stop

    kept = tmp_path / "small.safetensors"
    kept.write_bytes(b"an older file")
    with pytest.raises(type(stop) if isinstance(stop, OSError) else stop):
        convert(sources["bin folder"], kept, overwrite=True, progress=stopping)
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"] and kept.read_bytes() == b"an older file"


def test_the_unfinished_file_of_a_killed_run_is_removed_by_the_next(sources, tmp_path):
    target = tmp_path / "small.safetensors"
    killed = child(
        """
        def dying(done):
            if done.bytes > done.all_bytes // 2:
                os.kill(os.getpid(), signal.SIGKILL)
        convert(sys.argv[1], sys.argv[2], progress=dying)
    """,
        sources["bin folder"],
        target,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [file.suffix for file in tmp_path.iterdir()] == [".unfinished"]
    convert(sources["bin folder"], target)
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"] and open_text_encoder(target)


def test_a_full_disk_is_reported_before_anything_is_written(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mulan_nodes.mulan.checkpoints.safetensors_writer.shutil.disk_usage", lambda _: SimpleNamespace(free=300_000)
    )
    with pytest.raises(
        OSError, match=r"_text_int8.safetensors takes [0-9.]+ MB, but the disk of .* has 0.3 MB free: make room"
    ):
        convert(sources["bin folder"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_file_never_gets_its_final_name(tmp_path):
    path = tmp_path / "gap.safetensors"
    with pytest.raises(ValueError, match="gap.safetensors: 1 tensors are not complete, the first is b"):
        with SafetensorsWriter(
            path, {"a": TensorSpec(torch.int8, (4,)), "b": TensorSpec(torch.float16, (6, 2))}, {}
        ) as file:
            file.write("a", torch.zeros(4, dtype=torch.int8))
            file.write("b", torch.ones(2, 2).half(), first_row=4)
    with pytest.raises(ValueError, match="does not fit"):
        with SafetensorsWriter(path, {"a": TensorSpec(torch.int8, (4,))}, {}) as file:
            file.write("a", torch.zeros(4, dtype=torch.int8), first_row=1)
    assert not list(tmp_path.iterdir())


def test_rows_in_any_order_make_the_same_file(tmp_path):
    tensors = {
        "small": torch.arange(3, dtype=torch.uint8),
        "é": torch.randn(5, 4),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }
    path = tmp_path / "rows.safetensors"
    with SafetensorsWriter(
        path, {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}, {"about": "Ünï"}
    ) as file:
        file.write("é", tensors["é"][3:], first_row=3)
        for name in ("scalar", "small", "none"):
            file.write(name, tensors[name])
        file.write("é", tensors["é"][:3])
    read = load_file(path)
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"about": "Ünï"}


# --- memory ---


def child(code: str, *arguments) -> subprocess.CompletedProcess:
    """Runs `code` with the library in a process of its own."""
    lines = code.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    body = "\n".join(line[indent:] for line in lines)
    start = "import os, signal, sys\nfrom mulan_nodes.tools.comfyui import open_comfyui\nopen_comfyui('--cpu')\n"
    start += "from mulan_nodes.mulan.conversion.converters import convert\n"
    return subprocess.run(
        [sys.executable, "-c", start + body, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_memory_does_not_grow_with_the_model(comfyui_folder, tmp_path):
    """Over 500 MB of weights, the largest of 23 MB, 101 MB a layer: the conversion holds a part of them, the comparison
    two layers at most. Busy machines give pages back later.

    All resident pages count, those of the mapped source too; the conversion opens it anew more often here than it does
    for large models.
    """
    width, feed_forward, layers = 2048, 5504, 5
    block = torch.randn(feed_forward * width, generator=torch.Generator().manual_seed(6)).half() * 0.02
    shapes = {"model.embed_tokens.weight": (VOCABULARY, width), "model.norm.weight": (width,)}
    for at in (f"model.layers.{layer}." for layer in range(layers)):
        shapes |= {f"{at}self_attn.{p}_proj.weight": (width, width) for p in "qkvo"} | {
            f"{at}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")
        }
        shapes |= {f"{at}mlp.{p}_proj.weight": (feed_forward, width) for p in ("gate", "up")} | {
            f"{at}mlp.down_proj.weight": (width, feed_forward)
        }
    weights = {name: block[: torch.Size(shape).numel()].view(shape).clone() for name, shape in shapes.items()}
    weights["spiece_model"] = torch.frombuffer(bytearray(TOKENIZER.read_bytes()), dtype=torch.uint8)
    save_file(weights, tmp_path / "large.safetensors", metadata={"config": json.dumps({"num_attention_heads": 16})})
    size = sum(tensor.nbytes for tensor in weights.values())
    del weights

    measured = child(
        """
        import gc, json, threading, time
        import psutil
        import torch
        from pathlib import Path
        from mulan_nodes.mulan.checkpoints import tensor_files
        from mulan_nodes.mulan.conversion import encoder_error
        from mulan_nodes.mulan.conditioning.model_files import text_encoder_from_tensors

        tensor_files.STREAMED_WEIGHTS = 2 ** 22  # of this model about as much as 2 ** 28 is of the published one
        resident = psutil.Process().memory_info

        class Peak(threading.Thread):
            def run(self):
                self.start_at = self.highest = resident().rss
                self.running = True
                while self.running:
                    self.highest = max(self.highest, resident().rss)
                    time.sleep(0.002)

        def growth(work):
            gc.collect()
            peak = Peak(daemon=True)
            peak.start()
            work()
            peak.running = False
            peak.join()
            return peak.highest - peak.start_at

        source, folder = Path(sys.argv[1]), Path(sys.argv[2])
        windows = [[1, 50, 60, 2] + [0] * 76]
        opened = lambda: text_encoder_from_tensors(tensor_files.open_streaming(source))
        states = lambda: encoder_error.hidden_states(opened(), windows)
        states()  # the first use of a kernel takes memory of its own
        grown = {format: growth(lambda: convert(source, folder, format)) for format in ("int8", "int4", "fp8", "fp16")}
        grown["states"] = growth(states)
        print(json.dumps(grown))
    """,
        tmp_path / "large.safetensors",
        tmp_path,
        comfyui_folder,
    )
    assert measured.returncode == 0, measured.stderr
    grown = json.loads(measured.stdout.splitlines()[-1])
    assert size > 500e6
    bounds = {
        "int8": 300e6,
        "int4": 300e6,
        "fp8": 300e6,
        "fp16": 300e6,
        "states": 480e6,
    }  # measured: 69 to 136, 90 to 207, 21 to 80, 148 to 447 MB
    assert not {what: f"{grown[what] / 1e6:.0f} MB" for what, most in bounds.items() if grown[what] > most}, grown


# --- refusals ---


def single(path: Path, **tensors) -> Path:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return path


def test_refused_sources_are_identified(tmp_path):
    clip = single(
        tmp_path / "clip_l.safetensors", text_model__encoder__layers__0__mlp__fc1__weight=torch.zeros(3072, 768)
    )
    lora = single(tmp_path / "style.safetensors", lora_unet_x__lora_down__weight=torch.zeros(4, 8))
    llama3 = single(
        tmp_path / "llama3.safetensors",
        model__embed_tokens__weight=torch.zeros(4, 8),
        model__layers__0__self_attn__q_proj__weight=torch.zeros(8, 8),
        model__layers__0__self_attn__k_proj__weight=torch.zeros(2, 8),
    )
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (clip, "clip_l.safetensors .* is a CLIP-L text encoder; expected InternVL, .*, or a MuLan adapter"),
        (lora, "is a LoRA"),
        (llama3, "another large language model"),
        (tmp_path / "page.safetensors", "cannot be read as safetensors"),
        (tmp_path / "empty", "not a published checkpoint"),
        (tmp_path / "gone", "source not found: .*gone"),
    ):
        with pytest.raises(WrongFileError, match=words):
            convert(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_incomplete_and_foreign_sources_are_named(sources, tmp_path):
    cut = shutil.copytree(sources["bin folder"], tmp_path / "Cut")
    (cut / "pytorch_model-00002-of-00002.bin").unlink()
    bare = shutil.copytree(sources["bin folder"], tmp_path / "Bare")
    (bare / "tokenizer.model").unlink()
    foreign = shutil.copytree(sources["bin folder"], tmp_path / "Foreign")
    shutil.copy(ROOT / "tests" / "unit" / "test_convert.py", foreign / "tokenizer.model")
    alone = tmp_path / "alone" / "internvl_c.pth"
    alone.parent.mkdir()
    shutil.copy(sources["pth"], alone)
    holes = tmp_path / "holes.pth"
    torch.save(
        {name: t for name, t in torch.load(sources["pth"], weights_only=True).items() if "layers.1.mlp" not in name},
        holes,
    )
    shutil.copy(TOKENIZER, tmp_path)
    for path, words in (
        (cut, "lacks 1 of its shards.*pytorch_model-00002-of-00002.bin"),
        (bare, "without its sentencepiece model"),
        (foreign, "is not a sentencepiece model"),
        (alone, "is InternVL-C, but its sentencepiece model is not beside it"),
        (holes, "incomplete: 3 tensors are missing, the first is model.layers.1.mlp.down_proj.weight"),
    ):
        with pytest.raises(WrongFileError, match=words):
            convert(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_vocabulary_of_another_model_is_named(sources, tiny_models, tmp_path):
    mixed = shutil.copytree(sources["bin folder"], tmp_path / "Mixed")
    (mixed / "tokenizer.model").write_bytes(open_text_encoder(tiny_models["tiny_internvl.safetensors"]).tokenizer())
    with pytest.raises(
        WrongFileError, match="Mixed .* embeds 1014 tokens, but its sentencepiece model has 1200 pieces"
    ):
        convert(mixed, tmp_path / "out.safetensors")


@pytest.mark.parametrize("format", quantization.FORMATS)
@pytest.mark.parametrize(
    "name, value, words",
    [
        (
            "model.layers.1.mlp.up_proj.weight",
            float("nan"),
            r"holds values that are infinite or not a number \(NaN\). Download it again",
        ),
        ("model.norm.weight", float("inf"), "holds values that are infinite or not a number"),
        ("model.norm.weight", 1e5, "holds values up to 1e.05, too large for torch.float16"),
    ],
)
def test_damaged_weights_are_named(name, value, words, format, sources, tmp_path):
    weights = load_file(convert(sources["bin folder"], tmp_path, "fp16").path)
    weights[name] = weights[name].float()
    weights[name].view(-1)[5] = value
    save_file(weights, tmp_path / "damaged.safetensors")
    with pytest.raises(WrongFileError, match=f"damaged.safetensors .* is damaged: {name} {words}"):
        convert(tmp_path / "damaged.safetensors", tmp_path / "out.safetensors", format)
    assert not list(tmp_path.glob("out*"))


def test_quantized_weights_are_not_converted_again(sources, tmp_path):
    for format in ("int8", "int4", "fp8"):
        made = convert(sources["bin folder"], tmp_path, format)
        with pytest.raises(
            WrongFileError,
            match=f"text_{format}.safetensors .* already holds quantized weights .*: convert the published checkpoint",
        ):
            convert(made.path, tmp_path / "again.safetensors")


def test_refused_targets(sources, adapter, tmp_path):
    source = sources["bin folder"]
    made = convert(source, tmp_path)
    before = made.path.read_bytes()
    half = convert(source, tmp_path, "fp16").path
    inside = source / "pytorch_model.safetensors"
    for given, target, words in (
        (source, tmp_path, "InternVL-small-bin_text_int8.safetensors already exists: delete it, name another target"),
        (half, half, "is the source itself"),
        (source, inside, "is in the source folder"),
        (source, tmp_path / "x.pt", "name a .safetensors file"),
        (source, tmp_path / "no" / "x.safetensors", "folder .*no does not exist"),
    ):
        with pytest.raises(CannotWriteError, match=words):
            convert(given, target, overwrite=given is half or target is inside)
    with pytest.raises(CannotWriteError, match="format is 'int2', expected one of int8, int4, fp8, fp16"):
        convert(source, tmp_path / "x.safetensors", "int2")
    with pytest.raises(CannotWriteError, match="sd15.safetensors .* already is a MuLan adapter in .safetensors"):
        convert(adapter, tmp_path / "x.safetensors")
    assert made.path.read_bytes() == before and convert(source, tmp_path, overwrite=True).path.read_bytes() == before


# --- the command ---


def test_the_command_writes_and_compares(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(sources["pth"])]) == 0
    printed = capsys.readouterr().out
    written = tmp_path / "internvl_c_small_text_int8.safetensors"
    assert written.is_file() and f"{written}: InternVL's text encoder (2 layers, width 256) in int8" in printed
    assert f"Put {written.name} into models/text_encoders." in printed
    size = f"{written.stat().st_size / 1e6:.1f} MB"
    assert f" tensors, {size} of {size}" in printed and f"in int8, {size}\n" in printed
    assert all(f"  {language} " in printed for language in encoder_error.SENTENCES) and "  mean " in printed


def test_the_command_can_leave_the_comparison_out(sources, tmp_path, capsys):
    assert main([str(sources["bin folder"]), str(tmp_path), "--format", "fp8", "--no-check"]) == 0
    assert (
        "Relative error" not in capsys.readouterr().out
        and (tmp_path / "InternVL-small-bin_text_fp8.safetensors").is_file()
    )


def test_the_command_says_why_nothing_was_written(tmp_path):
    with pytest.raises(SystemExit, match="Nothing was written: .*nowhere' is neither a file or folder here nor"):
        main([str(tmp_path / "nowhere")])
