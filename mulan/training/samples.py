"""The endless stream of training samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

# Share of the timesteps: from there on an image's layout and colors are decided, and so the text matters most
HIGH_NOISE = 0.6

# Latents [B, C, h, w], noise [B, C, h, w], timesteps [B] long, captions, sizes [B, 6] or None
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str], torch.Tensor | None]


class Sample(NamedTuple):
    """A latent [C, h, w], its noise, its timestep, its caption, and its sizes [6] where the examples have them."""

    latent: torch.Tensor
    noise: torch.Tensor
    timestep: int
    caption: str
    sizes: torch.Tensor | None


class SampleStream:
    """The endless stream of training samples: the sample of an index is always the same, whoever asks for it and when.

    Every epoch has its own order of the examples. A sample's caption is "" for a share `empty_share` of the samples.
    Where `groups` are given (the group of each example), every run of `group_size` samples is of one group: what a
    group lacks to its last run is taken from its beginning.
    """

    def __init__(
        self,
        examples,
        timesteps: int,
        seed: int,
        empty_share: float,
        high_noise_share: float,
        groups: Sequence[int] | None = None,
        group_size: int = 1,
    ):
        if len(examples) == 0:
            raise ValueError("there are no examples to train on")
        self.examples = examples
        self.timesteps, self.seed = timesteps, seed
        self.empty_share, self.high_noise_share = empty_share, high_noise_share
        self.group_size = group_size if groups is not None else 1
        members: dict[int, list[int]] = {}
        for index, group in enumerate(groups or ()):
            members.setdefault(group, []).append(index)
        self._members = [members[group] for group in sorted(members)]
        runs = sum(-(-len(group) // self.group_size) for group in self._members)
        self._length = runs * self.group_size or len(examples)
        self._epoch, self._order = -1, []

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the samples of these indices together, on the CPU."""
        latents, noise, timesteps, captions, sizes = zip(*map(self.sample, indices), strict=True)
        together = None if sizes[0] is None else torch.stack(sizes)
        return torch.stack(latents), torch.stack(noise), torch.tensor(timesteps), list(captions), together

    def sample(self, index: int) -> Sample:
        """Return the sample of an index."""
        example = self.examples[self._example(index)]
        generator = self._generator("sample", index)
        high, empty = torch.rand(2, generator=generator).tolist()
        first = int(HIGH_NOISE * self.timesteps) if high < self.high_noise_share else 0
        timestep = int(torch.randint(first, self.timesteps, (), generator=generator))
        latent = example["latent"].float()
        noise = torch.randn(latent.shape, generator=generator)
        caption = "" if empty < self.empty_share else example["caption"]
        return Sample(latent, noise, timestep, caption, example.get("sizes"))

    def _example(self, index: int) -> int:
        epoch, position = divmod(index, self._length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._ordered(self._generator("epoch", epoch))
        return self._order[position]

    def _ordered(self, generator: torch.Generator) -> list[int]:
        if not self._members:
            return torch.randperm(len(self.examples), generator=generator).tolist()
        runs = []
        for members in self._members:
            order = [members[place] for place in torch.randperm(len(members), generator=generator).tolist()]
            for start in range(0, len(order), self.group_size):
                places = range(start, start + self.group_size)
                runs.append([order[place % len(order)] for place in places])
        return [index for run in torch.randperm(len(runs), generator=generator).tolist() for index in runs[run]]

    def _generator(self, kind: str, index: int) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed} {kind} {index}".encode(), digest_size=4).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
