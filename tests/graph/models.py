"""Model files for graph tests, made in a temporary folder: random weights in real layouts, wrong files, and the tiny models in other forms."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import comfy.ops
import torch
from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file, save_file

from mulan.adapter import AdapterShape, LanguageAdapter, to_published
from mulan.files import open_text_encoder
from mulan.text_encoder import InternVLEncoder

GOLDENS = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan"
SMALLEST_UNET = dict(image_size=32, in_channels=4, model_channels=320, num_res_blocks=[1], channel_mult=[1], num_heads=8, num_head_channels=-1,
                     transformer_depth=[1], use_spatial_transformer=True, legacy=False, dtype=torch.float32)


def make_all(folder: Path, tiny: Path) -> Path:
    """Fills `folder`, laid out as models/; `tiny` is the models folder that holds the tiny world."""
    torch.manual_seed(0)
    for name in ("checkpoints", "controlnet", "loras", "mulan", "text_encoders"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    encoder, adapter = tiny / "text_encoders" / "tiny_internvl.safetensors", tiny / "mulan" / "tiny_sd15_adapter.safetensors"
    _lora(folder / "loras" / "shapes.safetensors", tiny / "checkpoints" / "tiny_sd15.safetensors", encoder)
    _controlnet(folder / "controlnet" / "hint.safetensors")
    _sd21(folder, open_text_encoder(encoder).config.width)
    _large(folder, encoder)
    torch.save(load_file(adapter), folder / "mulan" / "as_published.pth")
    _sharded(folder / "text_encoders" / "Sharded-safetensors", encoder, ".safetensors")
    _sharded(folder / "text_encoders" / "Sharded-bin", encoder, ".bin")
    _wrong(folder)
    return folder


def _random(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Small random weights that keep signals finite through every layer."""
    return {name: (torch.randn_like(t) * 0.02 + (1.0 if "norm" in name and name.endswith("weight") and t.ndim == 1 else 0.0)).half().contiguous()
            for name, t in module.state_dict().items()}


def _lora(path: Path, checkpoint: Path, encoder: Path) -> None:
    """Kohya names: every cross-attention of the UNet, and the first layer's q and v of InternVL's LLaMA."""
    tensors = {}

    def add(name: str, weight: torch.Tensor, strength: float) -> None:
        out, into = weight.shape[0], weight.shape[1]
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, into) * into ** -0.5
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 4) * strength
        tensors[f"{name}.alpha"] = torch.tensor(4.0)

    prefix = "model.diffusion_model."
    for name, weight in load_file(checkpoint).items():
        if name.startswith(prefix) and "attn2.to_v.weight" in name:
            add("lora_unet_" + name[len(prefix):-len(".weight")].replace(".", "_"), weight, 0.05)
    for name, weight in load_file(encoder).items():
        if name.startswith("model.layers.0.self_attn.") and name.endswith(("q_proj.weight", "v_proj.weight")):
            add("lora_te_" + name[len("model."):-len(".weight")].replace(".", "_"), weight, 1.0)
    save_file(tensors, path)


def _controlnet(path: Path) -> None:
    net = ControlNet(**SMALLEST_UNET, context_dim=768, transformer_depth_output=[1, 1], transformer_depth_middle=-2, hint_channels=3,
                     device="cpu", operations=comfy.ops.disable_weight_init)
    save_file({f"control_model.{name}": t for name, t in _random(net).items()}, path)


def _sd21(folder: Path, text_width: int) -> None:
    """A checkpoint that ComfyUI takes for SD2.1 (no CLIP, no VAE) and an adapter of that family."""
    unet = UNetModel(**SMALLEST_UNET, context_dim=1024, use_linear_in_transformer=True, transformer_depth_output=[1, 1],
                     transformer_depth_middle=-2, out_channels=4, device="cpu", operations=comfy.ops.disable_weight_init)
    save_file({f"model.diffusion_model.{name}": t for name, t in _random(unet).items()}, folder / "checkpoints" / "random_sd21.safetensors")
    adapter = LanguageAdapter(AdapterShape(text_width=text_width, width=1024, queries=120, feed_forward=1024))
    save_file(to_published(_random(adapter)), folder / "mulan" / "random_sd21.safetensors")


def _large(folder: Path, encoder: Path) -> None:
    """A text encoder of 200 MB that can be seen coming and going in the server's memory, and an adapter that reads it."""
    tiny = open_text_encoder(encoder)
    sizes = type(tiny.config)(vocabulary=tiny.config.vocabulary, width=1024, feed_forward=2816, layers=8, heads=8, norm_eps=1e-6)
    module = InternVLEncoder(sizes, dtype=torch.float16)
    weights = {name: torch.randn(t.shape, dtype=torch.float16) * 0.02 for name, t in module.transformer.state_dict().items()}
    weights["spiece_model"] = tiny.file.read("spiece_model")
    save_file(weights, folder / "text_encoders" / "large.safetensors", metadata={"config": json.dumps({"num_attention_heads": 8})})
    adapter = LanguageAdapter(AdapterShape(text_width=1024, width=768, queries=77, feed_forward=768))
    save_file(to_published(_random(adapter)), folder / "mulan" / "large.safetensors")


def _sharded(folder: Path, encoder: Path, suffix: str) -> None:
    """As InternVL is published: two shards under upstream's names, among tensors that text never needs."""
    folder.mkdir()
    source = open_text_encoder(encoder)
    weights = {f"qllama.{name}": t for name, t in source.state_dict().items()}
    weights |= {"vision_model.embeddings.position_embedding": torch.zeros(1, 5, 8), "qllama.model.layers.0.cross_attn.q_proj.weight": torch.zeros(8, 8)}
    names = sorted(weights)
    stem, save = ("model", save_file) if suffix == ".safetensors" else ("pytorch_model", torch.save)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-{number:05}-of-00002{suffix}"
        save({name: weights[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    config = {"qllama_config": {"num_attention_heads": source.config.heads, "rms_norm_eps": source.config.norm_eps}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer.model").write_bytes(source.tokenizer())


def _wrong(folder: Path) -> None:
    """What people put into the wrong folder."""
    encoders, adapters = folder / "text_encoders", folder / "mulan"
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(3072, 768)}, encoders / "wrong_clip_l.safetensors")
    save_file({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(8, 8)}, encoders / "wrong_t5.safetensors")
    llama = {f"model.layers.0.self_attn.{p}_proj.weight": torch.zeros(s, 8) for p, s in (("q", 8), ("k", 2))}
    save_file({"model.embed_tokens.weight": torch.zeros(4, 8), **llama}, encoders / "wrong_llama3.safetensors")
    (encoders / "wrong_cut_short.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    shutil.copy(GOLDENS / "weights" / "sdxl_embed_attnpool_tiny.safetensors", adapters / "wrong_sdxl.safetensors")
    shutil.copy(GOLDENS / "weights" / "pixart_tiny.pth", adapters / "wrong_pixart.pth")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, adapters / "wrong_lora.safetensors")
    torch.save({"queries": torch.zeros(1), "code": print}, adapters / "wrong_code.pth")
    save_file(to_published(_random(LanguageAdapter(AdapterShape(4096, 768, 2, 8)))), adapters / "wrong_width.safetensors")
