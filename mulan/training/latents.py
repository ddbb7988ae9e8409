"""Images as latents on the disk: each in the bucket, a size, that is nearest to its own aspect ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from ..checkpoints.safetensors_writer import check_disk_space
from .dataset import CaptionedImages, Size, image_size, load_image
from .tensor_store import Parts, TensorStore, content_key, fill_store

ENCODE_BATCH = 8
LAYOUT_VERSION = 1  # of what is stored for an image
BUCKET_STEP = 64  # pixels between the sides of buckets, where the base allows it
LONGEST_SIDE = 2  # of the square's side


def bucket_sizes(side: int, multiple: int) -> list[Size]:
    """Return sizes of about `side` x `side` pixels and at most so many, from 1:4 to 4:1; the square is the first.

    Sides are multiples of `multiple` pixels.
    """
    step = multiple * max(1, min(BUCKET_STEP, side // 8) // multiple)
    longest = LONGEST_SIDE * side // step * step
    sizes = {(side, side)}
    for width in range(step, longest + 1, step):
        height = min(side * side // width // step * step, longest)
        if height and max(height, width) <= 4 * min(height, width):
            sizes.add((height, width))
    return sorted(sizes, key=lambda size: (size != (side, side), size))


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket whose aspect ratio is nearest to an image's; of equal ones the larger."""
    ratio = math.log(size[0] / size[1])
    return min(buckets, key=lambda each: (abs(math.log(each[0] / each[1]) - ratio), -each[0] * each[1]))


def time_ids(size: Size, bucket: Size) -> list[int]:
    """Return SDXL's six: height and width before resizing, top and left of the cut, height and width of the image.

    Top and left count pixels of the resized image.
    """
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    top, left = (max(0, round((side * scale - cut) / 2)) for side, cut in zip(size, bucket, strict=True))
    return [*size, top, left, *bucket]


class Latents(torch.utils.data.Dataset):
    """Latents that `cache_latents` wrote -> {"latent": [C, h, w], "caption": str, "sizes": int [6]}; read when asked
    for.

    `captions` has one for each of the `keys`, or several times as many: further ones of all images. `groups`: the
    bucket of each example.
    """

    def __init__(self, store: TensorStore, keys: Sequence[str], captions: Sequence[str]):
        self._store, self._keys, self.captions = store, keys, captions
        sizes = [tuple(store.read_part(key, "sizes").tolist()[4:]) for key in keys]
        number = {size: index for index, size in enumerate(dict.fromkeys(sizes))}
        self.groups = [number[sizes[index % len(keys)]] for index in range(len(captions))]
        self.buckets = {size: sizes.count(size) for size in number}

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        parts = self._store.read(self._keys[index % len(self._keys)])
        return {"latent": parts["latent"], "sizes": parts["sizes"], "caption": self.captions[index]}


def cache_latents(
    images: CaptionedImages,
    buckets: Sequence[Size],
    encode: Callable[[torch.Tensor], torch.Tensor],
    encoder_fingerprint: str,
    latent_bytes: int,
    folder: Path,
    accelerator,
    report: Callable[[int, int], None],
) -> Latents:
    """Encode what is not on disk yet, each process its share, and return all.

    encode: [B, 3, H, W] in -1..1 -> [B, C, h, w]. The files, float16 under `folder`/latents-<mark>, are made anew where
    the encoder or the buckets changed, and for images that changed. report(done, all) counts images. Raises OSError
    where the disk has no room: `latent_bytes` is what an image takes.
    """
    mark = content_key(f"{LAYOUT_VERSION} {encoder_fingerprint} {sorted(buckets)}")[:12]
    store = TensorStore(folder / f"latents-{mark}")
    keys = [content_key(images.key(index)) for index in range(len(images))]
    lacking = sum(key not in store for key in keys)
    if accelerator.is_main_process and lacking:
        folder.mkdir(parents=True, exist_ok=True)
        check_disk_space(folder, f"the latents of {lacking:,} images", lacking * latent_bytes)
    sizes: dict[int, Size] = {}  # of the images of one run

    def bucket(index: int) -> Size:
        return nearest_bucket(sizes[index], buckets)

    def compute(batch: Sequence[int]) -> Iterable[Parts]:
        pixels = torch.stack([load_image(images.paths[index], bucket(index)) for index in batch])
        latents = encode(pixels).to("cpu", torch.float16)
        for index, latent in zip(batch, latents, strict=True):
            yield {"latent": latent, "sizes": torch.tensor(time_ids(sizes[index], bucket(index)), dtype=torch.int32)}

    def batches(indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """Cut runs of images of one bucket out of a bounded number of images."""
        window = 64 * ENCODE_BATCH
        for start in range(0, len(indices), window):
            sizes.clear()
            sizes.update({index: image_size(images.paths[index]) for index in indices[start : start + window]})
            members: dict[Size, list[int]] = {}
            for index in sizes:
                members.setdefault(bucket(index), []).append(index)
            for of_bucket in members.values():
                yield from (of_bucket[at : at + ENCODE_BATCH] for at in range(0, len(of_bucket), ENCODE_BATCH))

    fill_store(store, keys, compute, batches, accelerator, report)
    return Latents(store, keys, images.captions)
