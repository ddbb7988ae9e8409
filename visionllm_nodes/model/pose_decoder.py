"""The pose decoder: boxes of the objects a prompt names, and the keypoints it names on each of them.

Source: X-Pose / UniPose (Yang et al. 2023, arXiv 2310.08530);
VisionLLMv2/visionllmv2/model/unipose/modeling_unipose.py. Modules have the published names, except for the layers that
the grounding decoder has too: those have the names of its checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from .decoder_layer import DecoderLayer
from .fusion import EncoderConfig, FusionEncoder
from .internimage import InternImageConfig
from .layers import LAYER_NORM_EPS, MLP, inverse_sigmoid, sine_embedding
from .pose_groups import join, keypoint_references, self_attention_mask, split
from .pyramid import Proposals, Pyramid, box_references, build_pyramid, level_projections, propose, text_logits
from .swin import SwinConfig

EPS = 1e-3  # of the inverse sigmoid, everywhere in this decoder


@dataclass(frozen=True)
class PoseConfig:
    """Sizes of the pose decoder. Raises ValueError for sizes that do not fit together.

    `query_hidden_size` is the language model's; `num_heads`, `intermediate_size` and `num_points` are those of the
    decoder's layers. The first `num_box_layers` of them refine `num_queries` boxes, the others `num_groups`, each a
    box and its `num_slots` keypoints.
    """

    backbone: SwinConfig | InternImageConfig
    query_hidden_size: int
    encoder: EncoderConfig
    temperature: float  # of the image's position embedding
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_points: int
    num_queries: int
    num_slots: int
    num_box_layers: int = 2
    num_groups: int = 50

    def __post_init__(self):
        if not 1 <= self.num_box_layers < self.num_layers:
            raise ValueError(
                f"the pose decoder has {self.num_layers} layers, {self.num_box_layers} of them for boxes: "
                "must be at least one, and not all"
            )
        if not 1 <= self.num_groups <= self.num_queries:
            raise ValueError(
                f"the pose decoder has {self.num_groups} groups: must be at least one, and at most one for each of its "
                f"{self.num_queries} queries"
            )
        if self.num_slots < 1:
            raise ValueError(f"the pose decoder needs at least one keypoint slot, not {self.num_slots}")
        for size, num_heads in (
            (self.encoder.hidden_size, self.num_heads),
            (self.encoder.hidden_size, self.encoder.num_heads),
            (self.encoder.hidden_size, self.encoder.text_num_heads),
            (self.encoder.fusion_hidden_size, self.encoder.fusion_num_heads),
        ):
            if num_heads < 1 or size % num_heads:
                raise ValueError(f"the pose decoder's hidden size of {size} cannot be split into {num_heads} heads")


@dataclass(frozen=True)
class PoseLayerOutput:
    """What one layer answers, float32 but for `hidden_states`.

    N tokens: the queries' boxes, or in later layers the groups' (see `pose_groups`).
    """

    hidden_states: torch.Tensor  # [B, N, D], normed
    references: torch.Tensor  # [B, N, 4]: the boxes that entered the layer
    logits: torch.Tensor  # [B, queries or groups, O], -inf where there is no such object name
    boxes: torch.Tensor  # [B, queries or groups, 4] cxcywh, 0..1 of the unpadded image
    # [B, groups, slots, 2] x, y in 0..1 of the unpadded image; None in a layer of boxes
    keypoints: torch.Tensor | None = None


@dataclass(frozen=True)
class PoseOutput:
    """G groups, O object names, K keypoint names, in the order of the prompt."""

    logits: torch.Tensor  # [B, G, O] float32, -inf where object_mask is False
    boxes: torch.Tensor  # [B, G, 4] float32 cxcywh, 0..1 of the unpadded image
    # [B, G, K, 2] float32 x, y in 0..1 of the unpadded image; without meaning where keypoint_mask is False
    keypoints: torch.Tensor
    layers: tuple[PoseLayerOutput, ...]
    proposals: Proposals
    chosen: torch.Tensor  # [B, G] int64: the query that each group began as


class PoseRefiner(nn.Module):
    """The decoder's layers: first of boxes, then of groups. One head of each kind serves all layers.

    `bbox_embed` moves boxes, `pose_embed` keypoints. `hw` (at first) and `pose_hw_embed` (then) say how far around a
    keypoint the layers look: nothing else depends on them, so that, as upstream, they get no gradient, and a trainer
    leaves them as it made them.
    """

    def __init__(self, config: PoseConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        own = dict(operations=operations, **kw)
        size = config.encoder.hidden_size
        self.config = config
        self.layers = nn.ModuleList(
            DecoderLayer(
                size, config.num_heads, config.intermediate_size, config.encoder.num_levels, config.num_points, **own
            )
            for _ in range(config.num_layers)
        )
        self.norm = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)
        self.ref_point_head = MLP((2 * size, size, size), **own)
        self.bbox_embed = MLP((size, size, size, 4), **own)
        self.pose_embed = MLP((size, size, size, 2), **own)
        self.pose_hw_embed = MLP((size, size, size, 2), **own)
        self.hw = operations.Embedding(config.num_slots, 2, **kw)

    def forward(
        self, hidden_states, boxes, vision, pyramid: Pyramid, text, object_mask, content, slot_mask
    ) -> tuple[tuple[PoseLayerOutput, ...], torch.Tensor]:
        """Return the output of every layer, and the query that each group began as, [B, G].

        hidden_states [B, Q, D], boxes [B, Q, 4], vision [B, S, D], text [B, O, D], object_mask bool [B, O]; content
        [B, slots, D] and slot_mask bool [B, slots]: the prompt's keypoints.
        """
        references = boxes
        mask, chosen, outputs = None, boxes.new_empty(0), []
        for index, layer in enumerate(self.layers):
            fixed = (
                references.detach()
            )  # upstream's: a layer teaches the layer before it, but not through where it looks
            at = box_references(fixed, pyramid)
            embedded = sine_embedding(at[:, :, 0], vision.shape[-1] // 2)
            positions = self.ref_point_head(embedded.to(hidden_states.dtype))
            hidden_states = layer(hidden_states, positions, at, vision, pyramid, text, object_mask, mask)
            grouped = index >= self.config.num_box_layers
            outputs.append(self._answer(self.norm(hidden_states), references, text, object_mask, grouped))
            if index + 1 < len(self.layers):
                references = self._next_references(hidden_states, fixed, grouped)
            if index + 1 == self.config.num_box_layers:
                scores = text_logits(hidden_states, text, object_mask).amax(-1)
                chosen = scores.topk(self.config.num_groups, dim=1).indices
                hidden_states, references = self._begin_groups(hidden_states, references, chosen, content)
                mask = self_attention_mask(slot_mask, self.config.num_groups)[:, None]
        return tuple(outputs), chosen

    def _move_boxes(self, hidden_states, references) -> torch.Tensor:
        """Move each of the boxes `references` (before sigmoid) as its hidden state says."""
        return (self.bbox_embed(hidden_states).float() + references).sigmoid()

    def _answer(self, hidden_states, references, text, object_mask, grouped: bool) -> PoseLayerOutput:
        """Read a layer's answer from its normed hidden states and from where it looked."""
        before = inverse_sigmoid(references, EPS)
        if not grouped:
            logits = text_logits(hidden_states, text, object_mask)
            return PoseLayerOutput(hidden_states, references, logits, self._move_boxes(hidden_states, before))
        box_states, keypoint_states = split(hidden_states, self.config.num_slots)
        box_before, keypoint_before = split(before, self.config.num_slots)
        keypoints = (self.pose_embed(keypoint_states).float() + keypoint_before[..., :2]).sigmoid()
        return PoseLayerOutput(
            hidden_states,
            references,
            text_logits(box_states, text, object_mask),
            self._move_boxes(box_states, box_before),
            keypoints,
        )

    def _next_references(self, hidden_states, references, grouped: bool) -> torch.Tensor:
        """Return where the next layer looks, from the hidden states before the norm: float32 [B, N, 4]."""
        before = inverse_sigmoid(references, EPS)
        if not grouped:
            return self._move_boxes(hidden_states, before)
        box_states, keypoint_states = split(hidden_states, self.config.num_slots)
        box_before, keypoint_before = split(before, self.config.num_slots)
        moves = torch.cat((self.pose_embed(keypoint_states), self.pose_hw_embed(keypoint_states)), dim=-1)
        return join(self._move_boxes(box_states, box_before), (moves.float() + keypoint_before).sigmoid())

    def _begin_groups(self, hidden_states, boxes, chosen, content) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the prompt's keypoints beside each chosen query: hidden states [B, N, D], references [B, N, 4]."""
        hidden_states = hidden_states.gather(1, chosen[..., None].expand(-1, -1, hidden_states.shape[-1]))
        boxes = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
        sizes = self.hw(torch.arange(self.config.num_slots, device=chosen.device))
        around = keypoint_references(boxes, self.pose_embed(content), sizes, EPS)
        return join(hidden_states, content[:, None].expand(-1, chosen.shape[1], -1, -1)), join(boxes, around)


class PoseDecoder(nn.Module):
    """Image, object and keypoint embeddings -> boxes and keypoints.

    `projection_llava` reads object names, `projection_kpt_llava` keypoint names; `enc_output`, `enc_output_norm` and
    `enc_out_bbox_embed` make the first boxes of the encoder's cells; `tgt_embed` [Q, D] is what the queries begin as,
    by rank of their box.
    """

    def __init__(self, config: PoseConfig, backbone: nn.Module, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        own = dict(operations=operations, **kw)
        size = config.encoder.hidden_size
        self.config = config
        self.backbone = backbone
        self.projection_llava = MLP((config.query_hidden_size, size, size, size), **own)
        self.projection_kpt_llava = MLP((config.query_hidden_size, size, size, size), **own)
        self.input_proj = level_projections(config.backbone.channels[1:], config.encoder.num_levels, size, **own)
        self.level_embed = nn.Parameter(torch.empty(config.encoder.num_levels, size, **kw))
        self.encoder = FusionEncoder(config.encoder, **own)
        self.enc_output = operations.Linear(size, size, **kw)
        self.enc_output_norm = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)
        self.enc_out_bbox_embed = MLP((size, size, size, 4), **own)
        self.tgt_embed = operations.Embedding(config.num_queries, size, **kw)
        self.decoder = PoseRefiner(config, **own)

    def forward(self, images, pixel_mask, object_queries, object_mask, keypoint_queries, keypoint_mask) -> PoseOutput:
        """Find boxes and keypoints in a batch of images.

        images [B, 3, H, W] normalized and zero-padded to multiples of 32, pixel_mask bool [B, H, W] (True: image);
        object_queries [B, O, E, C] and keypoint_queries [B, K, E, C]: the language model's hidden states behind each
        tool token; object_mask bool [B, O], at least one per image, and keypoint_mask bool [B, K]. Raises ValueError
        where K is more than the decoder's slots.
        """
        maps = self.backbone(images)[1:]
        pyramid = build_pyramid(maps, pixel_mask, self.input_proj, self.level_embed, self.config.temperature)
        slot_mask = self._fill_slots(keypoint_mask)
        keypoints = self.projection_kpt_llava(keypoint_queries.to(pyramid.features)).mean(2)
        content = self._fill_slots(keypoints) * slot_mask[..., None]
        text = self.projection_llava(object_queries.to(pyramid.features)).mean(2)
        vision, text = self.encoder(pyramid, text, object_mask)
        proposals = propose(
            vision,
            pyramid,
            text,
            object_mask,
            self.config.num_queries,
            output=self.enc_output,
            norm=self.enc_output_norm,
            bbox_embed=self.enc_out_bbox_embed,
        )
        queries = self.tgt_embed(torch.arange(self.config.num_queries, device=images.device))
        hidden_states = queries.to(vision).expand(len(images), -1, -1)
        layers, chosen = self.decoder(
            hidden_states, proposals.boxes.detach(), vision, pyramid, text, object_mask, content, slot_mask
        )
        last = layers[-1]
        keypoints = cast(torch.Tensor, last.keypoints)  # the last layer is one of groups
        return PoseOutput(
            last.logits, last.boxes, keypoints[:, :, : keypoint_queries.shape[1]], layers, proposals, chosen
        )

    def _fill_slots(self, rows: torch.Tensor) -> torch.Tensor:
        """Pad the prompt's keypoints to the slots with zeros (False): [B, K, ...] -> [B, slots, ...]."""
        missing = self.config.num_slots - rows.shape[1]
        if missing < 0:
            raise ValueError(
                f"the pose decoder finds at most {self.config.num_slots} keypoints at a time, not {rows.shape[1]}"
            )
        return F.pad(rows, (0, 0) * (rows.dim() - 2) + (0, missing))
