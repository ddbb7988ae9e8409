"""The grounding decoder: a picture and a few embeddings per name in, boxes and masks for each name out.

Source: Grounding DINO (Liu et al. 2023) with the language model's embeddings in the place of BERT's, and Mask DINO's mask branch;
upstream's model/grounding_dino/modeling_ov_grounding_dino_mask_dn.py.
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
from .pyramid import GROUPS, ProposalHead, Proposals, PyramidBuilder, box_references, text_logits
from .swin import SwinConfig

EPS = 1e-5  # of the inverse sigmoid


@dataclass(frozen=True)
class GroundingConfig:
    """`query_width` is the language model's width, `queries` the number of boxes found, `temperature` that of the picture's positions."""

    backbone: SwinConfig | InternImageConfig
    encoder: EncoderConfig
    query_width: int
    queries: int
    layers: int
    heads: int
    feed_forward: int
    points: int
    mask_width: int
    temperature: float = 20.0

    @property
    def width(self) -> int:
        return self.encoder.width


@dataclass(frozen=True)
class Grounding:
    """What every decoder layer found (L layers, the last one counts), float32 but for states and mask features.

    all_logits [L, B, Q, K] (-inf where a name is not valid; sigmoid makes the score), all_boxes [L, B, Q, 4] cxcywh in 0..1 of the unpadded picture,
    all_states [L, B, Q, D], mask_features [B, mask width, H/4, W/4], proposals: what the layers began with.
    """

    all_logits: torch.Tensor
    all_boxes: torch.Tensor
    all_states: torch.Tensor
    mask_features: torch.Tensor
    proposals: Proposals

    @property
    def logits(self):
        return self.all_logits[-1]

    @property
    def boxes(self):
        return self.all_boxes[-1]

    @property
    def states(self):
        return self.all_states[-1]


class NormedConv(nn.Module):
    """Convolution without bias and GroupNorm. Weights: `conv`, `norm`."""

    def __init__(self, channels: int, width: int, window: int, *, operations, dtype=None, device=None):
        super().__init__()
        self.conv = operations.Conv2d(
            channels, width, window, padding=window // 2, bias=False, dtype=dtype, device=device
        )
        self.norm = operations.GroupNorm(GROUPS, width, dtype=dtype, device=device)

    def forward(self, x):
        return self.norm(self.conv(x))


class MaskBranch(nn.Module):
    """The finest map of the backbone and the encoder's finest level make one map of features. Weights: `lateral`, `smooth`, `out`."""

    def __init__(self, channels: int, width: int, mask_width: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.lateral = NormedConv(channels, width, 1, operations=operations, **kw)
        self.smooth = NormedConv(width, width, 3, operations=operations, **kw)
        self.out = operations.Conv2d(width, mask_width, 1, **kw)

    def forward(self, finest, encoded):
        """finest [B, channels, H/4, W/4], encoded [B, D, H/8, W/8] -> [B, mask width, H/4, W/4]."""
        x = self.lateral(finest)
        x = x + F.interpolate(encoded, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(F.relu(self.smooth(x)))


class GroundingDecoder(nn.Module):
    """Weights: `backbone`, `query_mlp`, `pyramid`, `encoder`, `proposal_head`, `contents` [Q, D] (learned, by rank of the proposal),
    `position_head`, `layers.{i}`, `norm`, `box_head`, `mask_head`, `mask_branch`; the heads serve all layers."""

    def __init__(self, config: GroundingConfig, backbone: nn.Module, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(operations=operations, dtype=dtype, device=device)
        width, levels = config.width, config.encoder.levels
        self.config = config
        self.backbone = backbone
        self.query_mlp = MLP((config.query_width, width, width, width), **kw)
        self.pyramid = PyramidBuilder(backbone.widths[1:], width, config.temperature, **kw)
        self.encoder = FusedEncoder(config.encoder, **kw)
        self.proposal_head = ProposalHead(width, **kw)
        self.contents = nn.Parameter(torch.empty(config.queries, width, dtype=dtype, device=device))
        self.position_head = MLP((2 * width, width, width), **kw)
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, config.feed_forward, levels, config.points, **kw)
            for _ in range(config.layers)
        )
        self.norm = operations.LayerNorm(width, eps=LAYER_NORM_EPS, dtype=dtype, device=device)
        self.box_head = MLP((width, width, width, 4), **kw)
        self.mask_head = MLP((width, width, width, config.mask_width), **kw)
        self.mask_branch = MaskBranch(backbone.widths[0], width, config.mask_width, **kw)

    def forward(self, images, pixel_mask, queries, query_mask) -> Grounding:
        """images [B, 3, H, W] normalised and zero-padded right and bottom, pixel_mask bool [B, H, W] (True: picture),
        queries [B, K, 4, query width] (a name's embeddings), query_mask bool [B, K] (True: valid, at least one per picture).
        The computation has the images' dtype. The pyramid must hold at least `config.queries` cells."""
        finest, *maps = self.backbone(images)
        pyramid = self.pyramid(maps, pixel_mask)
        text = self.query_mlp(queries.to(finest.dtype)).mean(2)
        vision, text = self.encoder(pyramid, text, query_mask)
        proposals = self.proposal_head(vision, pyramid, text, query_mask, self.config.queries)
        states, boxes = self._refine(proposals.boxes.detach(), vision, pyramid, text, query_mask)
        rows, columns = pyramid.shapes[0]
        encoded = vision[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns))
        return Grounding(
            all_logits=torch.stack([text_logits(layer, text, query_mask) for layer in states]),
            all_boxes=boxes,
            all_states=states,
            mask_features=self.mask_branch(finest, encoded),
            proposals=proposals,
        )

    def _refine(self, boxes, vision, pyramid, text, text_mask):
        """boxes [B, Q, 4] -> normed states [L, B, Q, D] and boxes [L, B, Q, 4] of every layer."""
        states = self.contents.to(text).expand(len(boxes), -1, -1)
        all_states, all_boxes = [], []
        for layer in self.layers:
            references = box_references(boxes, pyramid)
            positions = self.position_head(sine_embedding(references[:, :, 0], self.config.width // 2).to(states.dtype))
            states = layer(states, positions, references, vision, pyramid, text, text_mask)
            before = inverse_sigmoid(boxes, EPS)
            all_states.append(self.norm(states))
            all_boxes.append((self.box_head(all_states[-1]).float() + before).sigmoid())
            # what the next layer looks at comes from the states before the norm, and takes no gradient (as in DINO)
            boxes = (self.box_head(states).float() + before).sigmoid().detach()
        return torch.stack(all_states), torch.stack(all_boxes)

    def masks(self, grounding: Grounding, index):
        """index [B, N] of queries -> mask logits [B, N, H/4, W/4] of the last layer, on the padded canvas."""
        chosen = grounding.states.gather(1, index.unsqueeze(-1).expand(-1, -1, grounding.states.shape[-1]))
        return self.mask_logits(chosen, grounding.mask_features)

    def mask_logits(self, states, mask_features):
        """states [B, N, D], mask_features [B, mask width, H, W] -> [B, N, H, W]."""
        return torch.einsum("bnc,bchw->bnhw", self.mask_head(states), mask_features)
