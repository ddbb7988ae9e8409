"""The pose decoder: boxes of the objects a prompt names, and the keypoints it names on each of them.

Source: X-Pose / UniPose (Yang et al. 2023); VisionLLMv2/visionllmv2/model/unipose/modeling_unipose.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .decoder_layer import DecoderLayer
from .fusion import EncoderConfig, FusedEncoder
from .internimage import InternImageConfig
from .layers import LAYER_NORM_EPS, MLP, inverse_sigmoid, sine_embedding
from .pose_groups import join, keypoint_references, split, visible
from .pyramid import ProposalHead, Proposals, PyramidBuilder, box_references, text_logits
from .swin import SwinConfig

EPS = 1e-3  # of the inverse sigmoid, everywhere in this decoder


@dataclass(frozen=True)
class PoseConfig:
    """`query_width` is the language model's; `heads`, `feed_forward` and `points` are those of the decoder's `layers`.

    The first `box_layers` of them refine `queries` boxes, the others `groups`, each a box and its `slots` keypoints. Raises ValueError for sizes
    that cannot be.
    """

    backbone: SwinConfig | InternImageConfig
    query_width: int
    encoder: EncoderConfig
    temperature: float  # of the picture's position embedding
    layers: int
    heads: int
    feed_forward: int
    points: int
    queries: int
    slots: int
    box_layers: int = 2
    groups: int = 50

    def __post_init__(self):
        if not 1 <= self.box_layers < self.layers:
            raise ValueError(
                f"the pose decoder has {self.layers} layers, {self.box_layers} of them for boxes: at least one must be, and not all"
            )
        if not 1 <= self.groups <= self.queries:
            raise ValueError(
                f"each of the pose decoder's groups begins as one of its {self.queries} boxes: there cannot be {self.groups} groups"
            )
        if self.slots < 1:
            raise ValueError(f"the pose decoder needs at least one keypoint slot, not {self.slots}")
        width = self.encoder.width
        for whole, heads in (
            (width, self.heads),
            (width, self.encoder.heads),
            (width, self.encoder.text_heads),
            (self.encoder.fusion_width, self.encoder.fusion_heads),
        ):
            if heads < 1 or whole % heads:
                raise ValueError(f"a width of {whole} in the pose decoder cannot be shared out among {heads} heads")


@dataclass(frozen=True)
class PoseLayer:
    """What one layer answers, float32 but for `states`. N tokens: the queries' boxes, or in later layers the groups' (see `pose_groups`)."""

    states: torch.Tensor  # [B, N, D], normed
    references: torch.Tensor  # [B, N, 4]: the boxes that entered the layer
    logits: torch.Tensor  # [B, queries or groups, O], -inf where there is no such object name
    boxes: torch.Tensor  # [B, queries or groups, 4] cxcywh, 0..1 of the unpadded picture
    keypoints: torch.Tensor | None = (
        None  # [B, groups, slots, 2] x, y in 0..1 of the unpadded picture; None in a layer of boxes
    )


@dataclass(frozen=True)
class Pose:
    """G groups, O object names, K keypoint names, in the order of the prompt."""

    logits: torch.Tensor  # [B, G, O] float32, -inf where object_mask is False
    boxes: torch.Tensor  # [B, G, 4] float32 cxcywh, 0..1 of the unpadded picture
    keypoints: (
        torch.Tensor
    )  # [B, G, K, 2] float32 x, y in 0..1 of the unpadded picture; without meaning where keypoint_mask is False
    layers: tuple[PoseLayer, ...]
    proposals: Proposals
    chosen: torch.Tensor  # [B, G] int64: the query that each group began as


class PoseDecoder(nn.Module):
    """Weights: those of the parts below; all layers share the heads `box_head`, `keypoint_head` and `size_head`.

    `size_head` and `first_sizes` say how far around a keypoint the layers look. No answer depends on them but through where a layer looks,
    so that, as upstream, they get no gradient: a trainer leaves them as it made them.
    """

    def __init__(self, config: PoseConfig, backbone: nn.Module, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        own = dict(operations=operations, **kw)
        width = config.encoder.width
        self.config = config
        self.backbone = backbone
        self.object_mlp = MLP((config.query_width, width, width, width), **own)
        self.keypoint_mlp = MLP((config.query_width, width, width, width), **own)
        self.pyramid = PyramidBuilder(backbone.widths[1:], width, config.temperature, **own)
        self.encoder = FusedEncoder(config.encoder, **own)
        self.proposal_head = ProposalHead(width, **own)
        self.contents = operations.Embedding(config.queries, width, **kw)
        self.position_head = MLP((2 * width, width, width), **own)
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, config.feed_forward, config.encoder.levels, config.points, **own)
            for _ in range(config.layers)
        )
        self.norm = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)
        self.box_head = MLP((width, width, width, 4), **own)
        self.keypoint_head = MLP((width, width, width, 2), **own)
        self.size_head = MLP((width, width, width, 2), **own)
        self.first_sizes = operations.Embedding(config.slots, 2, **kw)

    def forward(self, images, pixel_mask, object_queries, object_mask, keypoint_queries, keypoint_mask) -> Pose:
        """Answers for a batch of pictures.

        images [B, 3, H, W] normalised and zero-padded to multiples of 32, pixel_mask bool [B, H, W] (True: picture); object_queries [B, O, E, C] and
        keypoint_queries [B, K, E, C]: the language model's states behind each tool token; object_mask bool [B, O], at least one per
        picture, and keypoint_mask bool [B, K]. Raises ValueError where K is more than the decoder's slots.
        """
        pyramid = self.pyramid(self.backbone(images)[1:], pixel_mask)
        asked = self._fill_slots(keypoint_mask)
        content = self._fill_slots(self.keypoint_mlp(keypoint_queries.to(pyramid.features)).mean(2)) * asked[..., None]
        text = self.object_mlp(object_queries.to(pyramid.features)).mean(2)
        vision, text = self.encoder(pyramid, text, object_mask)
        proposals = self.proposal_head(vision, pyramid, text, object_mask, self.config.queries)

        references = proposals.boxes.detach()
        states = (
            self.contents(torch.arange(self.config.queries, device=images.device))
            .to(vision)
            .expand(len(images), -1, -1)
        )
        mask, chosen, answers = None, None, []
        for number, layer in enumerate(self.layers):
            fixed = (
                references.detach()
            )  # upstream's: a layer's answer teaches the layer before it, but not through where it looks
            at = box_references(fixed, pyramid)
            positions = self.position_head(sine_embedding(at[:, :, 0], vision.shape[-1] // 2).to(states.dtype))
            states = layer(states, positions, at, vision, pyramid, text, object_mask, mask)
            grouped = number >= self.config.box_layers
            answers.append(self._answer(self.norm(states), references, text, object_mask, grouped))
            if number + 1 < len(self.layers):
                references = self._refined(states, fixed, grouped)
            if number + 1 == self.config.box_layers:
                chosen = text_logits(states, text, object_mask).amax(-1).topk(self.config.groups, dim=1).indices
                states, references = self._begin_groups(states, references, chosen, content)
                mask = visible(asked, self.config.groups)[:, None]

        last = answers[-1]
        return Pose(
            last.logits,
            last.boxes,
            last.keypoints[:, :, : keypoint_queries.shape[1]],
            tuple(answers),
            proposals,
            chosen,
        )

    def _fill_slots(self, rows):
        """[B, K, ...] -> [B, slots, ...], zero (False) beyond K."""
        missing = self.config.slots - rows.shape[1]
        if missing < 0:
            raise ValueError(
                f"the pose decoder finds at most {self.config.slots} keypoints at a time, {rows.shape[1]} are asked for"
            )
        return F.pad(rows, (0, 0) * (rows.dim() - 2) + (0, missing))

    def _move_boxes(self, states, references):
        """The boxes of `references` (before sigmoid), each moved as its state says."""
        return (self.box_head(states).float() + references).sigmoid()

    def _answer(self, states, references, text, object_mask, grouped: bool) -> PoseLayer:
        """What a layer's normed states say, from where the layer looked."""
        before = inverse_sigmoid(references, EPS)
        if not grouped:
            return PoseLayer(
                states, references, text_logits(states, text, object_mask), self._move_boxes(states, before)
            )
        box_states, keypoint_states = split(states, self.config.slots)
        box_before, keypoint_before = split(before, self.config.slots)
        keypoints = (self.keypoint_head(keypoint_states).float() + keypoint_before[..., :2]).sigmoid()
        return PoseLayer(
            states,
            references,
            text_logits(box_states, text, object_mask),
            self._move_boxes(box_states, box_before),
            keypoints,
        )

    def _refined(self, states, references, grouped: bool):
        """Where the next layer looks, from the states before the norm: float32 [B, N, 4]."""
        before = inverse_sigmoid(references, EPS)
        if not grouped:
            return self._move_boxes(states, before)
        box_states, keypoint_states = split(states, self.config.slots)
        box_before, keypoint_before = split(before, self.config.slots)
        moves = torch.cat((self.keypoint_head(keypoint_states), self.size_head(keypoint_states)), dim=-1)
        return join(self._move_boxes(box_states, box_before), (moves.float() + keypoint_before).sigmoid())

    def _begin_groups(self, states, boxes, chosen, content):
        """The chosen queries' states and boxes with the prompt's keypoints put beside each: states [B, N, D], references [B, N, 4]."""
        states = states.gather(1, chosen[..., None].expand(-1, -1, states.shape[-1]))
        boxes = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
        sizes = self.first_sizes(torch.arange(self.config.slots, device=chosen.device))
        around = keypoint_references(boxes, self.keypoint_head(content), sizes, EPS)
        return join(states, content[:, None].expand(-1, chosen.shape[1], -1, -1)), join(boxes, around)
