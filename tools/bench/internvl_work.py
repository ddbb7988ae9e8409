"""What InternVL is measured at, ours and beside it the plain ways: texts, pictures, zero-shot classification, orders,
and a folder seen before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mulan_nodes.mulan.conditioning.internvl_llama import last_token_state
from mulan_nodes.mulan.conditioning.tokenizer import PAD
from mulan_nodes.mulan.internvl.embedding_cache import CLOCK_RESOLUTION, EmbeddingCache, cache_path
from mulan_nodes.mulan.internvl.image_folder import embed_folder, open_image_folder
from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
from mulan_nodes.mulan.internvl.internvl_model import MAX_TOKENS, LoadedInternVL, text_ids
from mulan_nodes.mulan.internvl.ranking import mean_embedding, rank
from mulan_nodes.mulan.internvl.zeroshot import BUILT_IN, LABEL_MARK, embed_labels

from ..random_checkpoints import internvl as random_internvl
from ..tinyworld.captions import CHOICES, LANGUAGES
from ..tinyworld.world import THINGS

Way = Callable[[], torch.Tensor | list[int]]  # one of several to the same result

QUICK = random_internvl.recipe.CASES["one"]
SIZES = dict(
    seed=1,
    width=512,
    feed_forward=2048,
    layers=6,
    heads=4,
    patch=14,
    picture=224,
    qkv_bias=False,
    text_width=768,
    text_feed_forward=2064,
    text_layers=4,
    text_heads=6,
    norm_eps=1e-6,
    queries=96,
    embedding=768,
    pool_heads=16,
    every=2,
)
WHOLE = {
    "width": 3200,
    "feed_forward": 12800,
    "layers": 48,
    "text_width": 4096,
    "text_feed_forward": 11008,
    "text_layers": 32,
}
TEMPLATES = BUILT_IN["en"].sentences  # 80
TOP = 10
FRAMING = "whole"


@dataclass(frozen=True)
class Amounts:
    """How much of everything; `size` of a picture, height and width."""

    texts: int = 1000
    labels: int = 8
    pictures: int = 64
    size: tuple[int, int] = (480, 640)
    vectors: int = 100_000
    width: int = 768  # of the vectors that are put in order

    @classmethod
    def few(cls) -> Amounts:
        return cls(texts=30, labels=2, pictures=5, size=(30, 40), vectors=300)


def write_checkpoint(cache: Path, sizes: dict, say: Callable[[str], None]) -> Path:
    """A published folder with random weights, written on first use."""
    folder = cache / "-".join(["internvl", *(str(sizes[name]) for name in WHOLE)])
    if not (folder / "tokenizer.model").is_file():  # the last that is written
        say(f"files: {folder.name}")
        random_internvl.checkpoint(folder, **sizes)
    return folder


def load(folder: Path) -> tuple[LoadedInternVL, LoadedInternVL]:
    """Modes C and G, which share the LLaMA."""
    only = load_internvl(folder, "C", device="cpu")
    return only, load_internvl(folder, "G", device="cpu", clip=only.clip)


class Texts:
    """Short labels in fourteen languages, and the sentences that templates make of a few."""

    def __init__(self, loaded: LoadedInternVL, amounts: Amounts):
        self._loaded = loaded
        every = sorted(
            {
                language.noun_phrase(thing, named)
                for language in LANGUAGES.values()
                for thing in THINGS
                for named in CHOICES
            }
        )
        chosen = np.random.default_rng(1).permutation(len(every))[: amounts.texts]
        self.texts = [every[number] for number in chosen]
        self._labels = [LANGUAGES["en"].bare_phrase(thing, frozenset(("colour", "shape"))) for thing in THINGS[::2]][
            : amounts.labels
        ]

    def labels(self) -> dict[str, Way]:
        return {
            "ours": lambda: self._loaded.embed_texts(self.texts),
            "one by one": lambda: torch.cat([self._loaded.embed_texts([text]) for text in self.texts]),
            "padded": lambda: self._padded(self.texts),
        }

    def zeroshot(self) -> dict[str, Way]:
        def ours() -> torch.Tensor:
            self._loaded.label_cache = None  # what it keeps of the last
            return again()

        def again() -> torch.Tensor:
            return embed_labels(self._loaded, self._labels, TEMPLATES)

        return {"ours": ours, "again": again, "padded": self._label_by_label}

    @property
    def sentences(self) -> list[str]:
        return [template.replace(LABEL_MARK, label) for label in self._labels for template in TEMPLATES]

    def rows(self, way: Way) -> tuple[torch.Tensor | list[int], dict[str, int]]:
        """A way's result and how many rows of the LLaMA it computes for that, padding included."""
        counts = []
        handle = self._loaded.encoder.register_forward_pre_hook(
            lambda _, windows: counts.append(sum(map(len, windows[0])))
        )
        try:
            return way(), {"rows": sum(counts)}
        finally:
            handle.remove()

    def tokens(self, texts: Sequence[str]) -> int:
        return sum(len(text_ids(self._loaded.tokenizer, text)) for text in texts)

    def _padded(self, texts: Sequence[str], together: int = 16) -> torch.Tensor:
        """As upstream's tokenizer gives texts to its model: each filled up to 80 tokens. So many at a time are as many
        rows as ours.
        """
        rows = []
        for start in range(0, len(texts), together):
            ids = [text_ids(self._loaded.tokenizer, text) for text in texts[start : start + together]]
            states = self._loaded.encoder.hidden_states(
                [(*of_text, *[PAD] * (MAX_TOKENS - len(of_text))) for of_text in ids]
            )
            rows += [last_token_state(of_text, of_rows) for of_text, of_rows in zip(ids, states, strict=True)]
        return self._loaded.model.project_texts(torch.stack(rows))

    def _label_by_label(self) -> torch.Tensor:
        """As clip_benchmark does: the sentences of one label in one batch."""
        of_labels = [
            self._padded([template.replace(LABEL_MARK, label) for template in TEMPLATES], len(TEMPLATES))
            for label in self._labels
        ]
        return torch.stack([F.normalize(vectors.mean(dim=0), dim=0) for vectors in of_labels])


class Pictures:
    """Pictures of one size, soft in colour, in memory and as files."""

    def __init__(self, only: LoadedInternVL, either: LoadedInternVL, amounts: Amounts):
        self._loaded = {"C": only, "G": either}
        random, (height, width) = np.random.default_rng(2), amounts.size
        coarse = [Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(amounts.pictures)]
        self._images = [image.resize((width, height), Image.Resampling.BICUBIC) for image in coarse]
        self.pictures = [torch.from_numpy(np.asarray(image, dtype=np.float32) / 255) for image in self._images]

    def modes(self) -> dict[str, dict[str, Way]]:
        return {
            mode: {
                "ours": lambda loaded=loaded: loaded.embed_images(self.pictures, FRAMING),
                "one by one": lambda loaded=loaded: torch.cat(
                    [loaded.embed_images([picture], FRAMING) for picture in self.pictures]
                ),
            }
            for mode, loaded in self._loaded.items()
        }

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(self._images):
            image.save(folder / f"{number}.jpg", quality=90)
        return folder


def orders(amounts: Amounts) -> dict[str, Way]:
    """The best of many vectors for a query."""
    random = torch.Generator().manual_seed(3)
    vectors = F.normalize(torch.randn(amounts.vectors, amounts.width, generator=random), dim=1)
    query = F.normalize(torch.randn(1, amounts.width, generator=random), dim=1)

    def loop() -> list[int]:
        scores = [float(vector @ query[0]) for vector in vectors]
        return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:TOP]

    return {
        "ours": lambda: rank(vectors @ mean_embedding(query), TOP),
        "all": lambda: rank(vectors @ mean_embedding(query))[:TOP],
        "topk": lambda: (vectors @ query[0]).topk(TOP).indices.tolist(),
        "loop": loop,
    }


class Folders:
    """A folder whose pictures are known already, so that their content matters to no one, and one whose pictures are
    always new.

    The files of the first hold a few bytes each, all different, and its vectors are random.
    """

    def __init__(self, loaded: LoadedInternVL, pictures: Pictures, cache: Path, amounts: Amounts):
        self._loaded = loaded
        self._kept_in = cache / "internvl-kept"
        self._new = pictures.write(cache / f"internvl-new-{amounts.pictures}")
        self._seen = cache / f"internvl-seen-{amounts.vectors}"
        self._seen.mkdir(exist_ok=True)
        for number in range(amounts.vectors):
            file = self._seen / f"{number}.png"
            if not file.exists():
                file.write_bytes(str(number).encode())
        time.sleep(2 * CLOCK_RESOLUTION / 1e9)  # younger files are read each time
        self.bytes = self._keep(amounts)

    def seen(self) -> torch.Tensor:
        return embed_folder(self._loaded, open_image_folder(self._seen), FRAMING, self._kept_in).vectors

    def new(self) -> torch.Tensor:
        with tempfile.TemporaryDirectory() as nothing_kept:
            return embed_folder(self._loaded, open_image_folder(self._new), FRAMING, Path(nothing_kept)).vectors

    def _keep(self, amounts: Amounts) -> int:
        """Writes the vectors as if they had been computed -> bytes of their file."""
        owner = f"{self._loaded.identity} {FRAMING}"
        path = cache_path(self._kept_in, self._seen, self._loaded.mode, FRAMING, owner)
        path.unlink(missing_ok=True)
        stored, random = EmbeddingCache(path, owner), torch.Generator().manual_seed(4)
        vectors = F.normalize(
            torch.randn(amounts.vectors, self._loaded.model.config.embedding_size, generator=random), dim=1
        )
        for vector, file in zip(vectors, self._seen.iterdir(), strict=True):
            stored[stored.key(file)] = vector
        stored.save()
        return path.stat().st_size
