"""The tiny VisionLLM's sizes, and how its weights begin. Everything else about it is the published architecture."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import nn

from mulan_nodes.visionllm_nodes.model.bridge import Bridge, BridgeConfig
from mulan_nodes.visionllm_nodes.model.deformable_attention import DeformableAttention
from mulan_nodes.visionllm_nodes.model.fusion import EncoderConfig, FusionLayer
from mulan_nodes.visionllm_nodes.model.grounding_decoder import GroundingConfig, GroundingDecoder
from mulan_nodes.visionllm_nodes.model.image_inputs import ImageSettings
from mulan_nodes.visionllm_nodes.model.keys import grounding, pose
from mulan_nodes.visionllm_nodes.model.language_model import LanguageConfig, LanguageModel
from mulan_nodes.visionllm_nodes.model.pose_decoder import PoseConfig, PoseDecoder
from mulan_nodes.visionllm_nodes.model.region_encoder import RegionConfig, RegionEncoder
from mulan_nodes.visionllm_nodes.model.super_link import SuperLink, SuperLinkConfig
from mulan_nodes.visionllm_nodes.model.swin import SwinConfig, WindowAttention
from mulan_nodes.visionllm_nodes.model.vision_tower import TowerConfig, VisionTower
from mulan_nodes.visionllm_nodes.model.visionllm import VisionLLM

from .scenes import PICTURE_SIZE

Model = TypeVar("Model", bound=nn.Module)

TOWER_PICTURE = 112  # pixels; the picture of 128 is shrunk to it
TOWER_LAYER = -1
SETTINGS = ImageSettings(
    tower=TOWER_PICTURE,
    tiles=1,
    short=PICTURE_SIZE,
    long=2 * PICTURE_SIZE,
    semantic_short=PICTURE_SIZE,
    semantic_long=2 * PICTURE_SIZE,
)
WIDTH = 128  # of the language model
HEADS = 4  # of every transformer but the decoders' text layers, which have half of it
SLOTS = 5  # keypoints at a time
GROUPS = 8
NAME_BIAS = 4.0  # every name's logit begins at about minus this, because the decoders' logits have no bias of their own

TOWER = TowerConfig(
    hidden_size=96, intermediate_size=192, num_hidden_layers=4, num_attention_heads=HEADS, image_size=TOWER_PICTURE
)
BRIDGE = BridgeConfig(in_features=TOWER.hidden_size, out_features=WIDTH, num_layers=2, normed=False)
REGION = RegionConfig(channels=(16, 48), vision_hidden_size=TOWER.hidden_size, hidden_size=WIDTH)
SUPER_LINK = SuperLinkConfig(hidden_size=WIDTH, rows={"det": 4, "pose": 4})
ENCODER = EncoderConfig(
    hidden_size=64,
    num_layers=2,
    num_heads=HEADS,
    intermediate_size=128,
    text_num_heads=HEADS // 2,
    text_intermediate_size=32,
    fusion_num_heads=HEADS // 2,
    fusion_hidden_size=32,
    num_levels=4,
    num_points=2,
)


def _backbone(normed: tuple[bool, ...]) -> SwinConfig:
    return SwinConfig(
        embed_dim=12, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 4), window_size=4, intermediate_size=24, normed=normed
    )


GROUNDING = GroundingConfig(
    backbone=_backbone((True, True, True, True)),
    encoder=ENCODER,
    query_hidden_size=WIDTH,
    num_queries=60,
    num_layers=3,
    num_heads=HEADS,
    intermediate_size=128,
    num_points=2,
    mask_channels=32,
)
POSE = PoseConfig(
    backbone=_backbone((False, True, True, True)),
    query_hidden_size=WIDTH,
    encoder=ENCODER,
    temperature=20,
    num_layers=3,
    num_heads=HEADS,
    intermediate_size=128,
    num_points=2,
    num_queries=60,
    num_slots=SLOTS,
    num_box_layers=1,
    num_groups=GROUPS,
)


def language_config(vocabulary: int) -> LanguageConfig:
    return LanguageConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
    )


def build_grounding() -> GroundingDecoder:
    return begun(grounding.build(GROUNDING, operations=nn))


def build_pose() -> PoseDecoder:
    return begun(pose.build(POSE, operations=nn))


def build_reader(vocabulary: int) -> VisionLLM:
    """All but the decoders."""
    return begun(
        VisionLLM(
            VisionTower(TOWER, operations=nn),
            TOWER_LAYER,
            Bridge(BRIDGE, operations=nn),
            LanguageModel(language_config(vocabulary), operations=nn),
            SuperLink(SUPER_LINK, operations=nn),
            RegionEncoder(REGION, operations=nn),
        )
    )


@torch.no_grad()
def begun(model: Model) -> Model:
    """The model with the values that training begins from."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
        elif isinstance(module, WindowAttention):
            nn.init.normal_(module.relative_position_bias_table, std=0.02)
        elif isinstance(module, FusionLayer):
            nn.init.constant_(module.vision_param, 0.3)
            nn.init.constant_(module.text_param, 0.3)
        elif isinstance(module, VisionTower):
            clip: Any = module.vision_model
            nn.init.normal_(clip.embeddings.class_embedding, std=0.3)
        elif isinstance(module, LanguageModel):
            _begin_language(module)
    for module in model.modules():  # behind the plain layers inside them
        if isinstance(module, DeformableAttention):
            _look_around(module)
        elif isinstance(module, (GroundingDecoder, PoseDecoder)):
            _begin_decoder(module)
        elif isinstance(module, LanguageModel):
            layers: Any = module.layers
            for layer in layers:
                for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    last.weight.mul_(1 / math.sqrt(2 * len(layers)))
    return model


def _begin_language(model: LanguageModel) -> None:
    layers: Any = model.layers
    for norm in (
        model.norm,
        *(norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)),
    ):
        nn.init.ones_(norm.weight)


def _look_around(attention: DeformableAttention) -> None:
    """Each head looks in a direction of its own, each point one cell further (Deformable DETR)."""
    angles = torch.arange(attention.num_heads) * (2 * math.pi / attention.num_heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, attention.num_points + 1)
    offsets = (directions[:, None, None] * steps[None, None, :, None]).expand(-1, attention.num_levels, -1, -1)
    nn.init.zeros_(attention.sampling_offsets.weight)
    attention.sampling_offsets.bias.copy_(offsets.flatten())
    nn.init.zeros_(attention.attention_weights.weight)


def _begin_decoder(decoder: GroundingDecoder | PoseDecoder) -> None:
    if isinstance(decoder, PoseDecoder):
        first_head, last_norm = decoder.enc_out_bbox_embed, decoder.decoder.norm
        heads = (decoder.decoder.bbox_embed, decoder.decoder.pose_embed, decoder.decoder.pose_hw_embed)
    else:
        first_head, last_norm = decoder.encoder_output_bbox_embed, decoder.decoder.layer_norm
        heads = (decoder.decoder.bbox_embed,)
        nn.init.normal_(decoder.query_position_embeddings.weight, std=0.5)
    for head in (first_head, *heads):  # boxes begin where they are
        last: Any = head.layers[-1]
        nn.init.zeros_(last.weight)
    nn.init.normal_(decoder.level_embed, std=0.5)
    # Logits are products of two normed states: opposite biases make the product begin at about -NAME_BIAS, and small
    # gains keep it near.
    last_layer: Any = decoder.encoder.layers[-1]
    text_norm = last_layer.text_enhancer_layer.layer_norm_after
    width = len(text_norm.bias)
    nn.init.constant_(text_norm.bias, 0.5)
    nn.init.constant_(text_norm.weight, 0.5)
    for norm in (last_norm, decoder.enc_output_norm):
        nn.init.constant_(norm.bias, -NAME_BIAS / width / 0.5)
        nn.init.constant_(norm.weight, 0.5)
