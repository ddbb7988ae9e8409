"""The grounding decoder: an image and a few embeddings per name in, boxes and masks for each name out.

Source: Grounding DINO (Liu et al. 2023, arXiv 2303.05499) with the language model's embeddings in the place of BERT's,
and Mask DINO's mask branch; upstream's model/grounding_dino/modeling_ov_grounding_dino_mask_dn.py. Modules have the
published names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .decoder_layer import DecoderLayer
from .fusion import EncoderConfig, FusionEncoder
from .internimage import InternImageConfig
from .layers import LAYER_NORM_EPS, MLP, inverse_sigmoid, sine_embedding
from .pyramid import (
    NUM_GROUPS,
    Proposals,
    Pyramid,
    box_references,
    build_pyramid,
    level_projections,
    propose,
    text_logits,
)
from .swin import SwinConfig

EPS = 1e-5  # of the inverse sigmoid


@dataclass(frozen=True)
class GroundingConfig:
    """Sizes of the grounding decoder.

    `query_hidden_size` is the language model's, `num_queries` the number of boxes found, `temperature` that of the
    image's positions.
    """

    backbone: SwinConfig | InternImageConfig
    encoder: EncoderConfig
    query_hidden_size: int
    num_queries: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_points: int
    mask_channels: int
    temperature: float = 20.0

    @property
    def hidden_size(self) -> int:
        return self.encoder.hidden_size


@dataclass(frozen=True)
class GroundingOutput:
    """What every decoder layer found (L layers, the last one counts), float32 but for hidden states and mask features.

    all_logits [L, B, Q, K] (-inf where a name is not valid; sigmoid makes the score), all_boxes [L, B, Q, 4] cxcywh in
    0..1 of the unpadded image, all_hidden_states [L, B, Q, D], mask_features [B, mask channels, H/4, W/4], proposals:
    what the layers began with.
    """

    all_logits: torch.Tensor
    all_boxes: torch.Tensor
    all_hidden_states: torch.Tensor
    mask_features: torch.Tensor
    proposals: Proposals

    @property
    def logits(self) -> torch.Tensor:
        return self.all_logits[-1]

    @property
    def boxes(self) -> torch.Tensor:
        return self.all_boxes[-1]

    @property
    def hidden_states(self) -> torch.Tensor:
        return self.all_hidden_states[-1]


class NormedConv(nn.Module):
    """Convolution without bias, and GroupNorm."""

    def __init__(self, channels: int, hidden_size: int, window: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.conv = operations.Conv2d(channels, hidden_size, window, padding=window // 2, bias=False, **kw)
        self.norm = operations.GroupNorm(NUM_GROUPS, hidden_size, **kw)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class BoxRefiner(nn.Module):
    """The decoder's layers. Each moves the boxes that it gets; one `bbox_embed` serves all layers."""

    def __init__(self, config: GroundingConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(operations=operations, dtype=dtype, device=device)
        size = config.hidden_size
        self.layers = nn.ModuleList(
            DecoderLayer(
                size, config.num_heads, config.intermediate_size, config.encoder.num_levels, config.num_points, **kw
            )
            for _ in range(config.num_layers)
        )
        self.layer_norm = operations.LayerNorm(size, eps=LAYER_NORM_EPS, dtype=dtype, device=device)
        self.reference_points_head = MLP((2 * size, size, size), **kw)
        self.bbox_embed = MLP((size, size, size, 4), **kw)

    def forward(
        self, hidden_states, boxes, vision, pyramid: Pyramid, text, text_mask
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normed hidden states [L, B, Q, D] and boxes [L, B, Q, 4] of every layer.

        hidden_states [B, Q, D], boxes [B, Q, 4] cxcywh in 0..1 of the image; the rest as for `DecoderLayer`.
        """
        all_hidden_states, all_boxes = [], []
        for layer in self.layers:
            references = box_references(boxes, pyramid)
            embedded = sine_embedding(references[:, :, 0], hidden_states.shape[-1] // 2)
            positions = self.reference_points_head(embedded.to(hidden_states.dtype))
            hidden_states = layer(hidden_states, positions, references, vision, pyramid, text, text_mask)
            before = inverse_sigmoid(boxes, EPS)
            all_hidden_states.append(self.layer_norm(hidden_states))
            all_boxes.append((self.bbox_embed(all_hidden_states[-1]).float() + before).sigmoid())
            # the next layer looks at boxes of the hidden states before the norm, which take no gradient (as in DINO)
            boxes = (self.bbox_embed(hidden_states).float() + before).sigmoid().detach()
        return torch.stack(all_hidden_states), torch.stack(all_boxes)


class GroundingDecoder(nn.Module):
    """Image and name embeddings -> boxes and masks.

    `enc_output`, `enc_output_norm` and `encoder_output_bbox_embed` make the first boxes of the encoder's cells;
    `query_position_embeddings` [Q, D] are what the queries begin as, by rank of their box; `lateral_conv`,
    `output_conv` and `mask_features` make the map that `mask_embed` is multiplied with.
    """

    def __init__(self, config: GroundingConfig, backbone: nn.Module, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        own = dict(operations=operations, **kw)
        size, channels = config.hidden_size, config.backbone.channels
        self.config = config
        self.backbone = backbone
        self.patch2query = MLP((config.query_hidden_size, size, size, size), **own)
        self.input_proj_vision = level_projections(channels[1:], config.encoder.num_levels, size, **own)
        self.level_embed = nn.Parameter(torch.empty(config.encoder.num_levels, size, **kw))
        self.encoder = FusionEncoder(config.encoder, **own)
        self.enc_output = operations.Linear(size, size, **kw)
        self.enc_output_norm = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)
        self.encoder_output_bbox_embed = MLP((size, size, size, 4), **own)
        self.query_position_embeddings = operations.Embedding(config.num_queries, size, **kw)
        self.decoder = BoxRefiner(config, **own)
        self.mask_embed = MLP((size, size, size, config.mask_channels), **own)
        self.lateral_conv = NormedConv(channels[0], size, 1, **own)
        self.output_conv = NormedConv(size, size, 3, **own)
        self.mask_features = operations.Conv2d(size, config.mask_channels, 1, **kw)

    def forward(self, images, pixel_mask, queries, query_mask) -> GroundingOutput:
        """Find boxes for every name of a batch of images; `masks` makes the masks of chosen boxes.

        images [B, 3, H, W] normalized and zero-padded right and bottom, pixel_mask bool [B, H, W] (True: image),
        queries [B, K, 4, query_hidden_size] (a name's embeddings), query_mask bool [B, K] (True: valid, at least one
        per image). The computation has the images' dtype. The pyramid must hold at least `config.num_queries` cells.
        """
        finest, *maps = self.backbone(images)
        pyramid = build_pyramid(maps, pixel_mask, self.input_proj_vision, self.level_embed, self.config.temperature)
        text = self.patch2query(queries.to(finest.dtype)).mean(2)
        vision, text = self.encoder(pyramid, text, query_mask)
        proposals = propose(
            vision,
            pyramid,
            text,
            query_mask,
            self.config.num_queries,
            output=self.enc_output,
            norm=self.enc_output_norm,
            bbox_embed=self.encoder_output_bbox_embed,
        )
        hidden_states = self.initial_hidden_states(images.device).to(text).expand(len(images), -1, -1)
        hidden_states, boxes = self.decoder(hidden_states, proposals.boxes.detach(), vision, pyramid, text, query_mask)
        rows, columns = pyramid.shapes[0]
        encoded = vision[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns))
        return GroundingOutput(
            all_logits=torch.stack([text_logits(layer, text, query_mask) for layer in hidden_states]),
            all_boxes=boxes,
            all_hidden_states=hidden_states,
            mask_features=self.make_mask_features(finest, encoded),
            proposals=proposals,
        )

    def initial_hidden_states(self, device: torch.device) -> torch.Tensor:
        """Return the learned [Q, D] that the queries begin as, in the weights' dtype."""
        return self.query_position_embeddings(torch.arange(self.config.num_queries, device=device))

    def make_mask_features(self, finest: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        """Return the map that masks are made of, [B, mask channels, H/4, W/4].

        `finest` [B, channels, H/4, W/4]: the backbone's finest map; `encoded` [B, D, H/8, W/8]: the encoder's finest
        level.
        """
        x = self.lateral_conv(finest)
        x = x + F.interpolate(encoded, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_features(F.relu(self.output_conv(x)))

    def masks(self, output: GroundingOutput, index: torch.Tensor) -> torch.Tensor:
        """Return mask logits [B, N, H/4, W/4] of the last layer for queries `index` [B, N], on the padded canvas."""
        hidden_states = output.hidden_states
        chosen = hidden_states.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1]))
        return self.mask_logits(chosen, output.mask_features)

    def mask_logits(self, hidden_states: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """Return mask logits [B, N, H, W] of hidden_states [B, N, D] and mask_features [B, mask channels, H, W]."""
        return torch.einsum("bnc,bchw->bnhw", self.mask_embed(hidden_states), mask_features)
