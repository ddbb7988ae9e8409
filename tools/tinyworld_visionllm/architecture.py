"""The tiny VisionLLM's sizes, and how its weights begin. Everything else about it is the published architecture."""

from __future__ import annotations

import math

import torch
from mulan_nodes.visionllm_nodes.model.bridge import Bridge, BridgeConfig
from mulan_nodes.visionllm_nodes.model.deformable_attention import DeformableAttention
from mulan_nodes.visionllm_nodes.model.fusion import EncoderConfig, FusionLayer
from mulan_nodes.visionllm_nodes.model.grounding_decoder import GroundingConfig, GroundingDecoder
from mulan_nodes.visionllm_nodes.model.image_inputs import PictureSettings
from mulan_nodes.visionllm_nodes.model.language_model import LanguageConfig, LanguageModel
from mulan_nodes.visionllm_nodes.model.layers import MLP
from mulan_nodes.visionllm_nodes.model.pose_decoder import PoseConfig, PoseDecoder
from mulan_nodes.visionllm_nodes.model.region_encoder import RegionConfig, RegionEncoder
from mulan_nodes.visionllm_nodes.model.super_link import SuperLink, SuperLinkConfig
from mulan_nodes.visionllm_nodes.model.swin import Swin, SwinConfig, WindowAttention
from mulan_nodes.visionllm_nodes.model.vision_tower import TowerConfig, VisionTower
from mulan_nodes.visionllm_nodes.model.visionllm import VisionLLM
from torch import nn

from .scenes import PICTURE_SIZE

TOWER_PICTURE = 112  # pixels; the picture of 128 is shrunk to it
TOWER_LAYER = -1
SETTINGS = PictureSettings(
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

TOWER = TowerConfig(width=96, feed_forward=192, layers=4, heads=HEADS, picture=TOWER_PICTURE)
BRIDGE = BridgeConfig(width=TOWER.width, out_width=WIDTH, layers=2, normed=False)
REGION = RegionConfig(widths=(16, 48), width=TOWER.width, out_width=WIDTH)
SUPER_LINK = SuperLinkConfig(width=WIDTH, rows={"det": 4, "pose": 4})
ENCODER = EncoderConfig(
    width=64,
    layers=2,
    heads=HEADS,
    feed_forward=128,
    text_heads=HEADS // 2,
    text_feed_forward=32,
    fusion_heads=HEADS // 2,
    fusion_width=32,
    levels=4,
    points=2,
)


def _backbone(normed: tuple[bool, ...]) -> SwinConfig:
    return SwinConfig(width=12, depths=(1, 2, 2, 1), heads=(1, 2, 4, 4), window=4, hidden=24, normed=normed)


GROUNDING = GroundingConfig(
    backbone=_backbone((True, True, True, True)),
    encoder=ENCODER,
    query_width=WIDTH,
    queries=60,
    layers=3,
    heads=HEADS,
    feed_forward=128,
    points=2,
    mask_width=32,
)
POSE = PoseConfig(
    backbone=_backbone((False, True, True, True)),
    query_width=WIDTH,
    encoder=ENCODER,
    temperature=20,
    layers=3,
    heads=HEADS,
    feed_forward=128,
    points=2,
    queries=60,
    slots=SLOTS,
    box_layers=1,
    groups=GROUPS,
)


def language_config(vocabulary: int) -> LanguageConfig:
    return LanguageConfig(
        vocabulary=vocabulary, width=WIDTH, feed_forward=176, layers=4, heads=HEADS, key_value_heads=HEADS
    )


def build_grounding() -> GroundingDecoder:
    return begun(GroundingDecoder(GROUNDING, Swin(GROUNDING.backbone, operations=nn), operations=nn))


def build_pose() -> PoseDecoder:
    return begun(PoseDecoder(POSE, Swin(POSE.backbone, operations=nn), operations=nn))


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
def begun(model: nn.Module) -> nn.Module:
    """The model with the values that training begins from."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
        elif isinstance(module, WindowAttention):
            nn.init.normal_(module.bias_table, std=0.02)
        elif isinstance(module, FusionLayer):
            nn.init.constant_(module.vision_scale, 0.3)
            nn.init.constant_(module.text_scale, 0.3)
        elif isinstance(module, VisionTower):
            nn.init.normal_(module.clip.embeddings.class_embedding, std=0.3)
        elif isinstance(module, LanguageModel):
            _begin_language(module)
        elif isinstance(module, GroundingDecoder):
            nn.init.normal_(module.contents, std=0.5)
    for module in model.modules():  # behind the plain layers inside them
        if isinstance(module, DeformableAttention):
            _look_around(module)
        elif isinstance(module, (GroundingDecoder, PoseDecoder)):
            _begin_decoder(module)
        elif isinstance(module, LanguageModel):
            for layer in module.layers:
                for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    last.weight.mul_(1 / math.sqrt(2 * len(module.layers)))
    return model


def _begin_language(model: LanguageModel) -> None:
    for norm in (
        model.norm,
        *(norm for layer in model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)),
    ):
        nn.init.ones_(norm.weight)


def _look_around(attention: DeformableAttention) -> None:
    """Each head looks in a direction of its own, each point one cell further (Deformable DETR)."""
    angles = torch.arange(attention.heads) * (2 * math.pi / attention.heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, attention.points + 1)
    offsets = (directions[:, None, None] * steps[None, None, :, None]).expand(-1, attention.levels, -1, -1)
    nn.init.zeros_(attention.offsets.weight)
    attention.offsets.bias.copy_(offsets.flatten())
    nn.init.zeros_(attention.weights.weight)


def _begin_decoder(decoder: GroundingDecoder | PoseDecoder) -> None:
    own = (decoder.keypoint_head, decoder.size_head) if isinstance(decoder, PoseDecoder) else ()
    for head in (decoder.proposal_head.box, decoder.box_head, *own):  # boxes begin where they are
        last: MLP = head.layers[-1]
        nn.init.zeros_(last.weight)
    nn.init.normal_(decoder.pyramid.level_embedding, std=0.5)
    # Logits are products of two normed states: opposite biases make the product begin at about -NAME_BIAS, and small gains keep it near.
    text_norm = decoder.encoder.layers[-1].text.feed_forward_norm
    width = len(text_norm.bias)
    nn.init.constant_(text_norm.bias, 0.5)
    nn.init.constant_(text_norm.weight, 0.5)
    for norm in (decoder.norm, decoder.proposal_head.norm):
        nn.init.constant_(norm.bias, -NAME_BIAS / width / 0.5)
        nn.init.constant_(norm.weight, 0.5)
