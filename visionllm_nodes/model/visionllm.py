"""VisionLLM v2 as one module: images and input ids in, hidden states out, and the decoders that are asked with them.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py (`VisionLLMv2Model.forward`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
from torch import nn

from .bridge import pixel_shuffle
from .language_model import KVCache, LanguageModel, visible_tokens
from .super_link import Link, SuperLink


@dataclass(frozen=True)
class VisionFeatures:
    """What the vision tower makes of one image.

    tokens: [views * tokens, hidden_size of the language model]. levels: the last three hidden states of the last view,
    [1, patches, hidden_size of the tower], for the region encoder; empty without one.
    """

    tokens: torch.Tensor
    levels: list[torch.Tensor]


@dataclass(frozen=True)
class Prompt:
    """Input ids with a position for each image token and each region, and the embeddings that go there.

    image_embeddings: [tokens, C] each, in the order of their positions. region_embeddings: [regions, C].
    """

    input_ids: Sequence[int]
    image_embeddings: Sequence[torch.Tensor] = ()
    region_embeddings: torch.Tensor | None = None
    links: Sequence[Link] = field(default_factory=tuple)


class VisionLLM(nn.Module):
    """All parts; `grounding`, `pose`, `region_encoder`, `generate` and `edit` may be None."""

    def __init__(
        self,
        tower: Any,
        tower_layer: int,
        bridge: Any,
        language: LanguageModel,
        super_link: SuperLink,
        region_encoder: Any = None,
        grounding: Any = None,
        pose: Any = None,
        generate: Any = None,
        edit: Any = None,
    ):
        super().__init__()
        self.tower = tower
        self.tower_layer = tower_layer
        self.bridge = bridge
        self.language = language
        self.super_link = super_link
        self.region_encoder = region_encoder
        self.grounding = grounding
        self.pose = pose
        self.generate = generate
        self.edit = edit

    @property
    def uses_pixel_shuffle(self) -> bool:
        """Whether the bridge takes four neighboring patches as one token."""
        return self.bridge.config.in_features == 4 * self.tower.config.hidden_size

    def encode_images(self, views: torch.Tensor) -> VisionFeatures:
        """Encode the views of one image, [N, 3, S, S], normalized, the whole image last."""
        with_regions = self.region_encoder is not None
        hidden_states, *levels = self.tower(views, (self.tower_layer, *((-3, -2, -1) if with_regions else ())))
        if self.uses_pixel_shuffle:
            side = isqrt(hidden_states.shape[1])
            hidden_states = pixel_shuffle(hidden_states.unflatten(1, (side, side))).flatten(1, 2)
        return VisionFeatures(self.bridge(hidden_states).flatten(0, 1), [level[-1:] for level in levels])

    def encode_regions(self, view: torch.Tensor, features: VisionFeatures, masks: torch.Tensor) -> torch.Tensor:
        """Encode regions: view [3, S, S] of the whole image, masks bool [R, S, S] -> embeddings [R, C]."""
        count = len(masks)
        levels = [level.expand(count, -1, -1) for level in features.levels]
        return self.region_encoder(view.expand(count, -1, -1, -1), masks[:, None], levels)

    def embed(self, prompt: Prompt, patch_id: int, region_id: int, device: torch.device | None = None) -> torch.Tensor:
        """Return a prompt's embeddings [1, T, C].

        patch_id, region_id: the input ids whose positions image tokens and regions take. device: by default the
        weights'; but where ComfyUI has loaded only some of them, that says nothing. Raises ValueError where positions
        and embeddings do not agree.
        """
        device = self.language.norm.weight.device if device is None else device
        embeddings = self.language.embed_tokens(torch.tensor(prompt.input_ids, device=device))
        images, regions = list(prompt.image_embeddings), prompt.region_embeddings
        if images:
            embeddings = embeddings.to(images[0].dtype)
        for kind, token_id, rows in (
            ("image tokens", patch_id, images),
            ("regions", region_id, [] if regions is None else [regions]),
        ):
            positions = [index for index, input_id in enumerate(prompt.input_ids) if input_id == token_id]
            count = sum(len(part) for part in rows)
            if len(positions) != count:
                raise ValueError(f"the prompt has {len(positions)} positions for {kind}, but {count} are given")
            if count:
                index = torch.tensor(positions, device=device)
                embeddings = embeddings.index_copy(0, index, torch.cat(rows).to(embeddings))
        return self.super_link.insert(embeddings[None], [prompt.links])

    def prefill(
        self,
        prompts: Sequence[Prompt],
        patch_id: int,
        region_id: int,
        past: KVCache | None = None,
        use_cache: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        after_layer: Callable[[], None] = lambda: None,
    ) -> tuple[list[torch.Tensor], KVCache | None]:
        """Run the prompts in one pass, each behind `past` -> the hidden states of each [T, C], and the cache.

        All are one sequence, of which each prompt sees its own part: they share `past`, and the cache holds them one
        behind the other. `patch_id`, `region_id` and `device` are those of `embed`.
        """
        embeddings = torch.cat([self.embed(prompt, patch_id, region_id, device) for prompt in prompts], dim=1)
        lengths, before = [len(prompt.input_ids) for prompt in prompts], past.length if past else 0
        visible = positions = None
        if len(prompts) > 1:
            owners = [-1] * before + [index for index, length in enumerate(lengths) for _ in range(length)]
            visible = visible_tokens(torch.tensor(owners, device=embeddings.device), sum(lengths))
            positions = [before + position for length in lengths for position in range(length)]
            positions = torch.tensor([positions], device=embeddings.device)
        hidden_states, cache = self.language(
            embeddings.to(dtype or embeddings.dtype),
            past,
            use_cache=use_cache,
            visible=visible,
            positions=positions,
            after_layer=after_layer,
        )
        return list(hidden_states[0].split(lengths)), cache
