"""Small bases with random weights, in the layouts of diffusers and of their authors, and a text encoder."""

from __future__ import annotations

from pathlib import Path

import comfy.ops
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.pixart.pixartms import PixArtMS
from safetensors.torch import save_file

from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder
from mulan_nodes.mulan.conditioning.text_config import TextConfig
from mulan_nodes.mulan.training import base_files, original_layouts

GOLDENS = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan"
XL = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    num_res_blocks=2,
    num_head_channels=64,
    use_spatial_transformer=True,
    use_linear_in_transformer=True,
    legacy=False,
    context_dim=2048,
    num_classes="sequential",
    adm_in_channels=2816,
    operations=comfy.ops.disable_weight_init,
)
SMALL_XL = dict(
    model_channels=64,
    channel_mult=(1, 1, 2),
    transformer_depth=[0, 0, 1, 1, 2, 2],
    transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2],
    transformer_depth_middle=2,
)
PUBLISHED_XL = dict(
    model_channels=320,
    channel_mult=(1, 2, 4),
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    transformer_depth_middle=10,
)


def randomize(module: torch.nn.Module, std: float = 0.05) -> torch.nn.Module:
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=std)
        if name.endswith("norm.weight"):
            parameter.data += 1
    return module.train(False)


def text_encoder(path: Path, width: int, layers: int = 1) -> Path:
    """InternVL's text encoder of so many layers, with its projection."""
    torch.manual_seed(2)
    spiece = (GOLDENS / "tokenizer" / "tokenizer.model").read_bytes()
    import sentencepiece

    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=spiece).get_piece_size()
    config = TextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        rms_norm_eps=1e-6,
    )
    weights = {
        name: (torch.randn_like(tensor) * 0.05 + name.endswith("norm.weight")).half()
        for name, tensor in InternVLEncoder(config, dtype=torch.float32).transformer.state_dict().items()
    }
    weights["text_projection"] = (torch.randn(width, 768) * width**-0.5).half()
    weights["spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
    save_file(weights, path, metadata={"config": f'{{"num_attention_heads": {width // 32}}}'})
    return path


def original_vae(path: Path, prefix: str = "first_stage_model.") -> dict[str, torch.Tensor]:
    vae = AutoencoderKL(
        embed_dim=4,
        ddconfig=dict(
            double_z=True,
            z_channels=4,
            resolution=32,
            in_channels=3,
            out_ch=3,
            num_res_blocks=1,
            attn_resolutions=[],
            dropout=0.0,
            ch=32,
            ch_mult=[1, 1],
        ),
    )
    tensors = {prefix + name: tensor.contiguous() for name, tensor in randomize(vae).state_dict().items()}
    save_file(tensors, path)
    return tensors


def original_sdxl(path: Path, **changes) -> torch.nn.Module:
    """A small SDXL checkpoint; returns its UNet."""
    torch.manual_seed(1)
    unet = randomize(UNetModel(**XL, **{**SMALL_XL, **changes}))
    tensors = {f"model.diffusion_model.{name}": tensor.contiguous() for name, tensor in unet.state_dict().items()}
    save_file(tensors | original_vae(path), path)
    return unet


def original_pixart(path: Path, micro_condition: bool) -> torch.nn.Module:
    """A PixArt of one block in its authors' layout, trained at 512 pixels; returns it."""
    torch.manual_seed(1)
    model = PixArtMS(
        depth=1,
        micro_condition=micro_condition,
        pe_interpolation=1,
        operations=comfy.ops.disable_weight_init,
        dtype=torch.float32,
    )
    randomize(model, 0.02)
    table = {"pos_embed": torch.zeros(1, 32**2, 1152)}
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()} | table, path)
    return model


def diffusers_folder(folder: Path, kind: str) -> Path:
    """A small base as diffusers saves it."""
    from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

    torch.manual_seed(0)
    if kind in ("alpha", "sigma"):
        PixArtTransformer2DModel(
            num_layers=1, sample_size=16, use_additional_conditions=kind == "alpha", caption_channels=4096
        ).save_pretrained(folder / "transformer")
    else:
        more = {}
        if kind == "sdxl":
            more = dict(
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                time_embedding_dim=1280,
            )
        UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim={"sd15": 768, "sd21": 1024, "sdxl": 2048}[kind],
            attention_head_dim=8,
            sample_size=16,
            **more,
        ).save_pretrained(folder / "unet")
    save_vae_and_schedule(folder)
    return folder


def save_vae_and_schedule(folder: Path, prediction: str = "epsilon") -> None:
    """What stands beside a denoiser in a folder of diffusers."""
    from diffusers import AutoencoderKL, DDPMScheduler

    AutoencoderKL(
        block_out_channels=(32, 32),
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder / "vae")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    ).save_pretrained(folder / "scheduler")


Shapes = dict[str, tuple[int, ...]]


def published_sdxl() -> tuple[int, int]:
    """How many parameters diffusers builds for the tensors of the published UNet, and how many these are."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNetModel(**XL, **PUBLISHED_XL)
        tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.state_dict().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config = original_layouts.unet_config(original_layouts.without_prefix(shapes, base_files.UNET_PREFIX))
        built = UNet2DConditionModel.from_single_file(
            tensors, original_config=original_layouts.original_config(config, {"ch_mult": [1]}), low_cpu_mem_usage=False
        )
    return count(built), count(unet)


def published_pixart(micro_condition: bool) -> tuple[Shapes, Shapes]:
    """The published transformer's tensors in diffusers' names, and those that diffusers builds."""
    from diffusers import PixArtTransformer2DModel

    model = PixArtMS(micro_condition=micro_condition, operations=comfy.ops.disable_weight_init, device="meta")
    with torch.device("meta"):
        tensors = original_layouts.pixart_tensors(model.state_dict())
        ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        built = PixArtTransformer2DModel(**original_layouts.pixart_config(ours, 128))
    assert built.use_additional_conditions == micro_condition and built.config.num_layers == 28
    return ours, {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
