"""VisionLLM v2 whole: pictures and words in, hidden states out, and decoders that are asked with them.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py (`VisionLLMv2Model.forward`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isqrt

import torch
from torch import nn

from .bridge import pixel_shuffle
from .language_model import KeyValues, LanguageModel
from .super_link import Link, SuperLink


@dataclass(frozen=True)
class Seen:
    """What the vision tower makes of one picture's views."""

    tokens: torch.Tensor  # [views * tokens, width of the language model]
    levels: list[
        torch.Tensor
    ]  # the last three hidden states of the last view, [1, patches, tower width]: the region encoder reads them


@dataclass(frozen=True)
class Prompt:
    """Token ids with a place for each token of the pictures and for each region, and what goes there."""

    ids: Sequence[int]
    pictures: Sequence[torch.Tensor] = ()  # [tokens, width] each, in the order of their places
    regions: torch.Tensor | None = None  # [regions, width]
    links: Sequence[Link] = field(default_factory=tuple)


class VisionLLM(nn.Module):
    """The parts under one roof; `grounding`, `pose`, `region_encoder`, `generate` and `edit` may be None."""

    def __init__(
        self,
        tower: nn.Module,
        tower_layer: int,
        bridge: nn.Module,
        language: LanguageModel,
        super_link: SuperLink,
        region_encoder: nn.Module | None = None,
        grounding: nn.Module | None = None,
        pose: nn.Module | None = None,
        generate: nn.Module | None = None,
        edit: nn.Module | None = None,
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
    def shuffles(self) -> bool:
        """Whether the bridge takes four neighbouring patches as one token."""
        return self.bridge.config.width == 4 * self.tower.config.width

    def look(self, views: torch.Tensor) -> Seen:
        """views [N, 3, S, S] of one picture, normalised, the whole picture last."""
        with_regions = self.region_encoder is not None
        states, *levels = self.tower(views, (self.tower_layer, *((-3, -2, -1) if with_regions else ())))
        if self.shuffles:
            side = isqrt(states.shape[1])
            states = pixel_shuffle(states.unflatten(1, (side, side))).flatten(1, 2)
        return Seen(self.bridge(states).flatten(0, 1), [level[-1:] for level in levels])

    def look_at_regions(self, view: torch.Tensor, seen: Seen, masks: torch.Tensor) -> torch.Tensor:
        """view [3, S, S] (the whole picture's), masks bool [R, S, S] -> an embedding per region, [R, width]."""
        count = len(masks)
        levels = [level.expand(count, -1, -1) for level in seen.levels]
        return self.region_encoder(view.expand(count, -1, -1, -1), masks[:, None], levels)

    def embed(
        self, prompts: Sequence[Prompt], patch: int, region: int, device: torch.device | None = None
    ) -> torch.Tensor:
        """Prompts -> embeddings [B, longest, width]; `patch` and `region` are the ids whose places pictures and regions take.

        Shorter prompts are padded at the right end, where no other token sees them. `device`: by default the weights'; but where the host has
        loaded only some of them, that tells nothing. Raises ValueError where places and contents do not agree.
        """
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.tensor(
            [[*prompt.ids, *[0] * (longest - len(prompt.ids))] for prompt in prompts],
            device=self.language.norm.weight.device if device is None else device,
        )
        embeddings = self.language.embed_tokens(ids)
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        regions = [prompt.regions for prompt in prompts if prompt.regions is not None]
        if pictures:
            embeddings = embeddings.to(pictures[0].dtype)
        for what, id, rows in (("pictures", patch, pictures), ("regions", region, regions)):
            places = ids == id
            count = sum(len(part) for part in rows)
            if int(places.sum()) != count:
                raise ValueError(
                    f"the prompt has {int(places.sum())} places for {what}, and {count} rows are to go there"
                )
            if count:
                embeddings = embeddings.masked_scatter(places[..., None], torch.cat(list(rows)).to(embeddings))
        return self.super_link.write(embeddings, [prompt.links for prompt in prompts])

    def read(
        self,
        prompts: Sequence[Prompt],
        patch: int,
        region: int,
        past: KeyValues | None = None,
        keep: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        after_layer: Callable[[], None] = lambda: None,
    ) -> tuple[torch.Tensor, KeyValues | None]:
        """One pass of the language model over the prompts behind `past` -> states [B, longest, width], cache; `device` as in `embed`."""
        embeddings = self.embed(prompts, patch, region, device)
        if past is not None and len(prompts) > 1:
            past = past.repeated(len(prompts))
        return self.language(embeddings.to(dtype or embeddings.dtype), past, keep=keep, after_layer=after_layer)
