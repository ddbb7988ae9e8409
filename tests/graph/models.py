"""Model files for graph tests, made in a temporary folder: random weights in real layouts, wrong files, and the tiny
models in other forms.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import comfy.ops
import comfy.utils
import torch
from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.pixart.pixartms import PixArtMS
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL, LanguageAdapterXL, TextProjection
from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.tools.browser.stand_ins import write_stand_ins
from mulan_nodes.tools.comfy_server import MODEL_FOLDERS
from mulan_nodes.tools.shards import save_shards

GOLDENS = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan"
SMALLEST_UNET = dict(
    image_size=32,
    in_channels=4,
    model_channels=320,
    num_res_blocks=[1],
    channel_mult=[1],
    num_heads=8,
    num_head_channels=-1,
    transformer_depth=[1],
    use_spatial_transformer=True,
    legacy=False,
    dtype=torch.float32,
)


def make_all(folder: Path, tiny: Path) -> Path:
    """Fills `folder`, laid out as models/; `tiny` is the models folder that holds the tiny world."""
    torch.manual_seed(0)
    for name in MODEL_FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    encoder, adapter = (
        tiny / "text_encoders" / "tiny_internvl.safetensors",
        tiny / "mulan" / "tiny_sd15_adapter.safetensors",
    )
    _lora(folder / "loras" / "shapes.safetensors", tiny / "checkpoints" / "tiny_sd15.safetensors", encoder)
    _clip_l_lora(folder / "loras" / "shapes_clip_l.safetensors", folder / "loras" / "shapes.safetensors")
    _controlnet(folder / "controlnet" / "hint.safetensors")
    _hypernetwork(folder / "hypernetworks" / "random.pt")
    _sd15(folder / "checkpoints", tiny / "checkpoints" / "tiny_sd15.safetensors")
    _sd21(folder, open_text_encoder(encoder).config.hidden_size)
    _sdxl(folder, tiny, encoder)
    _pixart(folder, encoder)
    _large(folder, encoder)
    torch.save(load_file(adapter), folder / "mulan" / "as_published.pth")
    _sharded(folder / "text_encoders" / "Sharded-safetensors", encoder, ".safetensors")
    _sharded(folder / "text_encoders" / "Sharded-bin", encoder, ".bin")
    _wrong(folder, encoder, adapter)
    write_stand_ins(tiny, folder)
    return folder


def _random(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Small random weights that keep signals finite through every layer."""
    return {
        name: (
            torch.randn_like(t) * 0.02 + (1.0 if "norm" in name and name.endswith("weight") and t.ndim == 1 else 0.0)
        )
        .half()
        .contiguous()
        for name, t in module.state_dict().items()
    }


def _lora(path: Path, checkpoint: Path, encoder: Path) -> None:
    """Kohya names: every cross-attention of the UNet, and the first layer's q and v of InternVL's LLaMA."""
    tensors = {}
    prefix = "model.diffusion_model."
    for name, weight in load_file(checkpoint).items():
        if name.startswith(prefix) and "attn2.to_v.weight" in name:
            _add_lora(tensors, "lora_unet_" + name[len(prefix) : -len(".weight")].replace(".", "_"), weight, 0.05)
    for name, weight in load_file(encoder).items():
        if name.startswith("model.layers.0.self_attn.") and name.endswith(("q_proj.weight", "v_proj.weight")):
            _add_lora(tensors, "lora_te_" + name[len("model.") : -len(".weight")].replace(".", "_"), weight, 1.0)
    save_file(tensors, path)


def _clip_l_lora(path: Path, lora: Path) -> None:
    """The same on the UNet; for the text the 72 layers that a LoRA of an SD1.5 checkpoint has for its own CLIP-L."""
    tensors = {name: t for name, t in load_file(lora).items() if name.startswith("lora_unet_")}
    for layer in range(12):
        for part in (
            "self_attn_q_proj",
            "self_attn_k_proj",
            "self_attn_v_proj",
            "self_attn_out_proj",
            "mlp_fc1",
            "mlp_fc2",
        ):
            name = f"lora_te_text_model_encoder_layers_{layer}_{part}"
            into, out = (3072 if part == "mlp_fc2" else 768), (3072 if part == "mlp_fc1" else 768)
            tensors |= {
                f"{name}.lora_down.weight": torch.randn(1, into),
                f"{name}.lora_up.weight": torch.randn(out, 1),
                f"{name}.alpha": torch.tensor(1.0),
            }
    save_file(tensors, path)


def _add_lora(tensors: dict[str, torch.Tensor], name: str, weight: torch.Tensor, strength: float) -> None:
    out, into = weight.shape[0], weight.shape[1]
    tensors[f"{name}.lora_down.weight"] = torch.randn(4, into) * into**-0.5
    tensors[f"{name}.lora_up.weight"] = torch.randn(out, 4) * strength
    tensors[f"{name}.alpha"] = torch.tensor(4.0)


def _hypernetwork(path: Path) -> None:
    """One linear layer each for the keys and values that cross-attention makes of the text's rows."""
    keys, values = ({"linear.weight": torch.randn(768, 768) * 0.02, "linear.bias": torch.zeros(768)} for _ in range(2))
    torch.save({768: (keys, values), "activation_func": "linear"}, path)


def _controlnet(path: Path) -> None:
    net = ControlNet(
        **SMALLEST_UNET,
        context_dim=768,
        transformer_depth_output=[1, 1],
        transformer_depth_middle=-2,
        hint_channels=3,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    save_file({f"control_model.{name}": t for name, t in _random(net).items()}, path)


def _sd15(folder: Path, tiny: Path) -> None:
    """The tiny checkpoint under the published name, and an InstructPix2Pix with its CLIP and VAE."""
    shutil.copyfile(tiny, folder / "v1-5-pruned-emaonly-fp16.safetensors")
    unet = UNetModel(
        **{**SMALLEST_UNET, "in_channels": 8},
        context_dim=768,
        transformer_depth_output=[1, 1],
        transformer_depth_middle=-2,
        out_channels=4,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    others = {name: t for name, t in load_file(tiny).items() if not name.startswith("model.diffusion_model.")}
    save_file(
        {f"model.diffusion_model.{name}": t for name, t in _random(unet).items()} | others,
        folder / "instruct-pix2pix-00-22000.safetensors",
    )


def _sd21(folder: Path, text_width: int) -> None:
    """A checkpoint that ComfyUI takes for SD2.1 (no CLIP, no VAE) and an adapter of that family."""
    unet = UNetModel(
        **SMALLEST_UNET,
        context_dim=1024,
        use_linear_in_transformer=True,
        transformer_depth_output=[1, 1],
        transformer_depth_middle=-2,
        out_channels=4,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    save_file(
        {f"model.diffusion_model.{name}": t for name, t in _random(unet).items()},
        folder / "checkpoints" / "random_sd21.safetensors",
    )
    adapter = LanguageAdapter(
        AdapterShape(text_hidden_size=text_width, context_dim=1024, num_queries=120, intermediate_size=1024)
    )
    save_file(to_published(_random(adapter)), folder / "mulan" / "random_sd21.safetensors")


def _sdxl(folder: Path, tiny: Path, encoder: Path) -> None:
    """The smallest UNet that ComfyUI takes for an SDXL (KOALA's depths), a LoRA on its size embedding and attention,
    the adapter in its four
    variants with the same weights where they share them, a text encoder with the projection that two of them need, and
    the refiner's UNet.
    """
    unet = UNetModel(
        **{**SMALLEST_UNET, "num_res_blocks": [3], "transformer_depth": [0, 2, 5]},
        context_dim=2048,
        use_linear_in_transformer=True,
        num_classes="sequential",
        adm_in_channels=2816,
        transformer_depth_output=[0, 0, 2, 5],
        transformer_depth_middle=-2,
        out_channels=4,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    weights = _random(unet)
    unet = {f"model.diffusion_model.{name}": t for name, t in weights.items()}
    vae = {
        name: t
        for name, t in load_file(tiny / "checkpoints" / "tiny_sd15.safetensors").items()
        if name.startswith("first_stage_model.")
    }
    save_file(unet | vae, folder / "checkpoints" / "sd_xl_base_1.0.safetensors")
    save_file(
        {name.removeprefix("first_stage_model."): t for name, t in vae.items()}, folder / "vae" / "sdxl_vae.safetensors"
    )
    lora = {}
    for name in ("label_emb.0.0", "label_emb.0.2", "input_blocks.2.1.transformer_blocks.0.attn2.to_v"):
        _add_lora(lora, "lora_unet_" + name.replace(".", "_"), weights[f"{name}.weight"], 0.2)
    save_file(lora, folder / "loras" / "random_sdxl.safetensors")

    text = open_text_encoder(encoder)
    weights = {}
    for text_embeds in (None, 768):
        weights = _xl_adapter(text.config.hidden_size, text_embeds) | {
            name: t for name, t in weights.items() if name.startswith("adapter")
        }
        embedding = {f"add_embedding.{name}": t * 5 for name, t in _random(TextProjection(2816, 1280)).items()}
        variant = "attnpool" if text_embeds is None else "textproj"
        save_file(to_published(weights), folder / "mulan" / f"random_sdxl_noembed_{variant}.safetensors")
        save_file(to_published(weights | embedding), folder / "mulan" / f"random_sdxl_embed_{variant}.safetensors")
    adapters = folder / "mulan"
    torch.save(load_file(adapters / "random_sdxl_noembed_attnpool.safetensors"), adapters / "sdxl_aesthetic.pth")
    stored = load_file(encoder) | {"text_projection": torch.randn(text.config.hidden_size, 768).half()}
    save_file(stored, folder / "text_encoders" / "projecting.safetensors", metadata=dict(text.file.metadata))

    refiner = UNetModel(
        **{
            **SMALLEST_UNET,
            "model_channels": 384,
            "num_res_blocks": [8],
            "num_heads": -1,
            "num_head_channels": 64,
            "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
        },
        context_dim=1280,
        use_linear_in_transformer=True,
        num_classes="sequential",
        adm_in_channels=2560,
        transformer_depth_output=[0] * 9,
        transformer_depth_middle=-2,
        out_channels=4,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    save_file(
        {f"model.diffusion_model.{name}": t for name, t in _random(refiner).items()},
        folder / "checkpoints" / "sd_xl_refiner_1.0.safetensors",
    )


def _xl_adapter(text_width: int, text_embeds: int | None) -> dict[str, torch.Tensor]:
    sizes = dict(text_hidden_size=text_width, num_queries=120, intermediate_size=64)
    halves = AdapterShape(context_dim=1280, **sizes), AdapterShape(context_dim=768, **sizes)
    return _random(LanguageAdapterXL(AdapterShapeXL(*halves, pooled_dim=1280, text_embeds_dim=text_embeds)))


def _pixart(folder: Path, encoder: Path) -> None:
    """PixArt alpha and sigma of one block, the adapter, a text encoder as wide as the caption projection wants, and the
    whole MuLan transformer:
    alpha again in diffusers' layout, its caption projection the adapter's.
    """
    adapter = {name: t * 5 for name, t in _random(TextProjection(4096, 1152)).items()}
    torch.save(adapter, folder / "mulan" / "pixart.pth")
    for kind, name in (("sigma", "PixArt-Sigma-XL-2-1024-MS"), ("alpha", "PixArt-XL-2-1024-MS")):
        model = PixArtMS(
            depth=1, micro_condition=kind == "alpha", operations=comfy.ops.disable_weight_init, dtype=torch.float32
        )
        weights = _random(model) | {"pos_embed": torch.zeros(1, 32**2, 1152)}
        save_file(weights, folder / "diffusion_models" / f"{name}.safetensors")
    projection = {f"caption_projection.{name}": t for name, t in adapter.items()}
    whole = _diffusers_names(weights) | projection
    save_file(whole, folder / "diffusion_models" / "mulan-pixart.safetensors")

    tiny = open_text_encoder(encoder)
    sizes = type(tiny.config)(
        vocab_size=tiny.config.vocab_size,
        hidden_size=4096,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=32,
        rms_norm_eps=1e-6,
    )
    weights = _random(InternVLEncoder(sizes, dtype=torch.float16).transformer)
    weights |= {"spiece_model": tiny.file.read("spiece_model"), "text_projection": torch.randn(4096, 768).half() / 64}
    save_file(weights, folder / "text_encoders" / "random_wide.safetensors")


def _diffusers_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ComfyUI's names of a PixArt of one block -> diffusers', by ComfyUI's own table; what diffusers keeps in several
    tensors is cut.
    """
    named = {}
    for theirs, ours in comfy.utils.pixart_to_diffusers({"depth": 1}).items():
        if isinstance(ours, str):
            named[theirs] = weights[ours]
        else:
            ours, (dimension, start, length), *_ = ours
            named[theirs] = weights[ours].narrow(dimension, start, length).contiguous()
    return named


def _large(folder: Path, encoder: Path) -> None:
    """A text encoder of 200 MB, to see coming and going in the server's memory, and two adapters that read it."""
    tiny = open_text_encoder(encoder)
    sizes = type(tiny.config)(
        vocab_size=tiny.config.vocab_size,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=8,
        rms_norm_eps=1e-6,
    )
    module = InternVLEncoder(sizes, dtype=torch.float16)
    weights = {
        name: torch.randn(t.shape, dtype=torch.float16) * 0.02 for name, t in module.transformer.state_dict().items()
    }
    weights["spiece_model"] = tiny.file.read("spiece_model")
    save_file(
        weights,
        folder / "text_encoders" / "large.safetensors",
        metadata={"config": json.dumps({"num_attention_heads": 8})},
    )
    for name in ("large", "large_too"):
        adapter = LanguageAdapter(
            AdapterShape(text_hidden_size=1024, context_dim=768, num_queries=77, intermediate_size=768)
        )
        save_file(to_published(_random(adapter)), folder / "mulan" / f"{name}.safetensors")


def _sharded(folder: Path, encoder: Path, suffix: str) -> None:
    """As InternVL is published: two shards under upstream's names, among tensors that text never needs."""
    folder.mkdir()
    source = open_text_encoder(encoder)
    weights = {f"qllama.{name}": t for name, t in source.state_dict().items()}
    weights |= {
        "vision_model.embeddings.position_embedding": torch.zeros(1, 5, 8),
        "qllama.model.layers.0.cross_attn.q_proj.weight": torch.zeros(8, 8),
    }
    save_shards(folder, weights, suffix)
    config = {
        "qllama_config": {
            "num_attention_heads": source.config.num_attention_heads,
            "rms_norm_eps": source.config.rms_norm_eps,
        }
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer.model").write_bytes(source.tokenizer())


def _wrong(folder: Path, encoder: Path, adapter: Path) -> None:
    """What people put into the wrong folder, what downloads leave behind, and files that are whole but spoilt."""
    encoders, adapters = folder / "text_encoders", folder / "mulan"
    _damaged(encoders, adapters, encoder, adapter)
    save_file(
        {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(3072, 768)}, encoders / "wrong_clip_l.safetensors"
    )
    save_file({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(8, 8)}, encoders / "wrong_t5.safetensors")
    llama = {f"model.layers.0.self_attn.{p}_proj.weight": torch.zeros(s, 8) for p, s in (("q", 8), ("k", 2))}
    save_file({"model.embed_tokens.weight": torch.zeros(4, 8), **llama}, encoders / "wrong_llama3.safetensors")
    (encoders / "wrong_cut_short.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    shutil.copy(
        GOLDENS / "weights" / "sdxl_embed_attnpool_tiny.safetensors", adapters / "wrong_narrow_sdxl.safetensors"
    )
    shutil.copy(GOLDENS / "weights" / "pixart_tiny.pth", adapters / "wrong_narrow_pixart.pth")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, adapters / "wrong_lora.safetensors")
    torch.save({"queries": torch.zeros(1), "code": print}, adapters / "wrong_code.pth")
    save_file(
        to_published(_random(LanguageAdapter(AdapterShape(4096, 768, 2, 8)))), adapters / "wrong_width.safetensors"
    )


def _damaged(encoders: Path, adapters: Path, encoder: Path, adapter: Path) -> None:
    whole = encoder.read_bytes()
    (encoders / "wrong_empty.safetensors").write_bytes(b"")
    (encoders / "wrong_cut_data.safetensors").write_bytes(whole[: len(whole) // 2])
    (encoders / "wrong_web_page.safetensors").write_bytes(
        b"<!DOCTYPE html><html><title>401 Unauthorized</title></html>"
    )
    (encoders / "wrong_pointer.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13355638784\n"
    )
    for name in ("index", "missing", "cut", "lacking", "outside"):
        broken = encoders / f"Broken-{name}"
        shutil.copytree(encoders / "Sharded-bin", broken)
        index, shard = broken / "pytorch_model.bin.index.json", broken / "pytorch_model-00002-of-00002.bin"
        if name == "index":
            index.write_bytes(index.read_bytes()[:100])
        elif name == "missing":
            shard.unlink()
        elif name == "cut":
            shard.write_bytes(shard.read_bytes()[:1000])
        elif name == "lacking":
            torch.save({"something": torch.zeros(1)}, shard)
        else:
            index.write_text(index.read_text("utf-8").replace(shard.name, f"../Sharded-bin/{shard.name}"), "utf-8")

    metadata, weights = dict(open_text_encoder(encoder).file.metadata), load_file(encoder)

    def save(name: str, **changed: torch.Tensor | None) -> None:
        tensors = {**weights, **changed}
        save_file({key: t for key, t in tensors.items() if t is not None}, encoders / name, metadata=metadata)

    def of_bytes(data: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    save("wrong_no_tokenizer.safetensors", spiece_model=None)
    save(
        "wrong_vocabulary.safetensors", spiece_model=of_bytes((GOLDENS / "tokenizer" / "tokenizer.model").read_bytes())
    )
    save("wrong_tokenizer.safetensors", spiece_model=of_bytes(b"<!DOCTYPE html>"))
    save("wrong_layer.safetensors", **{"model.layers.0.mlp.up_proj.weight": None})
    save(
        "wrong_nan.safetensors",
        **{"model.layers.1.mlp.down_proj.weight": _nan(weights["model.layers.1.mlp.down_proj.weight"])},
    )

    published = load_file(adapter)
    torch.save(published, adapters / "wrong_cut.pth")
    (adapters / "wrong_cut.pth").write_bytes((adapters / "wrong_cut.pth").read_bytes()[:10000])
    save_file(
        {name: t for name, t in published.items() if "norm3" not in name}, adapters / "wrong_incomplete.safetensors"
    )
    save_file(published | {"proj.2.bias": _nan(published["proj.2.bias"])}, adapters / "wrong_nan.safetensors")
    pooling = "pool_caption_projection.c_proj.bias"
    xl = load_file(adapters / "random_sdxl_noembed_attnpool.safetensors")
    save_file(xl | {pooling: _nan(xl[pooling])}, adapters / "wrong_nan_sdxl.safetensors")
    projection = torch.load(adapters / "pixart.pth", weights_only=True)
    torch.save(projection | {"linear_2.bias": _nan(projection["linear_2.bias"])}, adapters / "wrong_nan_pixart.pth")


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its last number spoilt."""
    spoilt = tensor.clone()
    spoilt.view(-1)[-1] = float("nan")
    return spoilt
