"""Training data: a folder of images with captions, their latents on disk, and the endless stream of samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from ..images.captions import caption_file, check_language
from ..images.image_files import SUFFIXES
from .run import write_safetensors

CAPTION_LIST = "metadata.jsonl"
# Share of the timesteps: from there on an image's layout and colors are decided, and so the text matters most
HIGH_NOISE = 0.6
SHARD_SIZE = 1024  # latents in a file; what an interrupted caching loses at most
ENCODE_BATCH = 8


class SampleStream:
    """The endless stream of training samples: the sample of an index is always the same, whoever asks for it and when.

    Every epoch has its own order of the examples. A sample is the example's latent, its noise, its timestep and its
    caption, which is "" for a share `empty_share` of the samples.
    """

    def __init__(self, examples, timesteps: int, seed: int, empty_share: float, high_noise_share: float):
        if len(examples) == 0:
            raise ValueError("there are no examples to train on")
        self.examples = examples
        self.timesteps, self.seed, self.empty_share, self.high_noise_share = (
            timesteps,
            seed,
            empty_share,
            high_noise_share,
        )
        self._epoch, self._order = -1, []

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
        """Return latents [B, C, h, w], noise [B, C, h, w], timesteps [B] long, captions; on the CPU."""
        latents, noise, timesteps, captions = zip(*map(self.sample, indices), strict=True)
        return torch.stack(latents), torch.stack(noise), torch.tensor(timesteps), list(captions)

    def sample(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int, str]:
        """Return latent, noise, timestep and caption of one sample."""
        example = self.examples[self._example(index)]
        generator = self._generator("sample", index)
        high, empty = torch.rand(2, generator=generator).tolist()
        first = int(HIGH_NOISE * self.timesteps) if high < self.high_noise_share else 0
        timestep = int(torch.randint(first, self.timesteps, (), generator=generator))
        latent = example["latent"].float()
        noise = torch.randn(latent.shape, generator=generator)
        return latent, noise, timestep, "" if empty < self.empty_share else example["caption"]

    def _example(self, index: int) -> int:
        epoch, position = divmod(index, len(self.examples))
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                torch.randperm(len(self.examples), generator=self._generator("epoch", epoch)).tolist(),
            )
        return self._order[position]

    def _generator(self, kind: str, index: int) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed} {kind} {index}".encode(), digest_size=4).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class CaptionedImages(torch.utils.data.Dataset):
    """The images of a folder and its subfolders -> {"image": float [3, size, size] in -1..1, "caption": str}.

    An image's caption is in metadata.jsonl ({"file_name", "text"} a line) or in the .txt of the same name; captions in
    other `languages` are in .de.txt, .ja.txt and so on, as Save Captions writes them. `captions` has those of all
    images, then those in the first other language, and so on. The shorter side is resized to `size`, the center is cut
    out. Raises ValueError where the folder or a caption is missing, or there is no image.
    """

    def __init__(self, folder: Path | str, size: int, languages: Sequence[str] = ()):
        self.folder, self.size = Path(folder), size
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder: expected a folder of images with captions")
        self.paths = sorted(
            path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        )
        if not self.paths:
            raise ValueError(f"{self.folder} contains no image ({', '.join(sorted(SUFFIXES))})")
        listed = listed_captions(self.folder)
        self.captions = self._checked([listed.get(path, [""])[-1] or text_beside(path) for path in self.paths])
        for code in map(check_language, languages):
            self.captions += self._checked([text_beside(path, code) for path in self.paths], code)

    def _checked(self, captions: list[str], language: str = "") -> list[str]:
        bare = [path for path, caption in zip(self.paths, captions, strict=True) if not caption]
        if bare:
            some = ", ".join(str(path.relative_to(self.folder)) for path in bare[:3]) + (
                ", ..." if len(bare) > 3 else ""
            )
            where = f"a .{language}.txt" if language else "a .txt"
            raise ValueError(
                f"{len(bare)} of {len(self.paths)} images in {self.folder} have no caption ({some}): "
                f"write it into {where} of the same name"
                + ("" if language else f' or into {CAPTION_LIST} as {{"file_name": ..., "text": ...}}')
            )
        return captions

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        return {"image": load_image(self.paths[index], self.size), "caption": self.captions[index]}

    def fingerprint(self) -> str:
        """Return a text that changes with the images and their size, not with their captions."""
        digest = hashlib.blake2b(f"{self.size}".encode(), digest_size=8)
        for path in self.paths:
            stat = path.stat()
            digest.update(f"{path.relative_to(self.folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def listed_captions(folder: Path) -> dict[Path, list[str]]:
    """Return the captions in a folder's metadata.jsonl by image, in the file's order; none where there is no such file.

    Raises ValueError that names a line of another form.
    """
    path = folder / CAPTION_LIST
    captions: dict[Path, list[str]] = {}
    for line_number, line in enumerate(read_text(path).split("\n") if path.is_file() else (), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            captions.setdefault(folder / entry["file_name"], []).append(entry["text"].strip())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f'{path}, line {line_number}: expected {{"file_name": ..., "text": ...}}, not {line[:80]!r}'
            ) from error
    return captions


def text_beside(path: Path, language: str = "") -> str:
    """Return the caption in the .txt of an image's name, or in a language's, empty where there is none."""
    text = caption_file(path, language)
    return read_text(text).strip() if text.is_file() else ""


def read_text(path: Path) -> str:
    """Read a UTF-8 text. Raises ValueError for another encoding."""
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors put a mark before the text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def load_image(path: Path, size: int) -> torch.Tensor:
    """Read an image, float [3, size, size] in -1..1. Transparent parts become white. Raises ValueError for other "
    "files.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): repair or remove it") from error
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


class LatentFolder(torch.utils.data.Dataset):
    """Latents that `cache_latents` wrote, with their captions -> {"latent": [C, h, w], "caption": str}; read when asked
    for. `captions` has one for each of `count` images, or several times as many: further ones of all images.
    """

    def __init__(self, shards: list[Path], captions: list[str], count: int):
        self.captions, self._count = captions, count
        self._latents = [safe_open(path, "pt").get_slice("latents") for path in shards]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        shard, row = divmod(index % self._count, SHARD_SIZE)
        return {"latent": self._latents[shard][row], "caption": self.captions[index]}


def cache_latents(
    images: CaptionedImages,
    encode: Callable[[torch.Tensor], torch.Tensor],
    encoder_fingerprint: str,
    folder: Path,
    accelerator,
    report: Callable[[int, int], None],
) -> LatentFolder:
    """Encode what is not on disk yet, each process its share, and return all.

    encode: [B, 3, H, W] in -1..1 -> [B, C, h, w].

    The files, float16 under `folder`/latents-<fingerprint>, are made anew where the images, their size or the encoder
    changed. report(done, all) counts images.
    """
    fingerprint = hashlib.blake2b(f"{images.fingerprint()} {encoder_fingerprint}".encode(), digest_size=6).hexdigest()
    folder = folder / f"latents-{fingerprint}"
    starts = range(0, len(images), SHARD_SIZE)
    shards = [folder / f"{start:08d}.safetensors" for start in starts]
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    for index, (start, shard) in enumerate(zip(starts, shards, strict=True)):
        if index % accelerator.num_processes == accelerator.process_index and not shard.is_file():
            stop = min(start + SHARD_SIZE, len(images))
            latents = []
            for first in range(start, stop, ENCODE_BATCH):
                batch = torch.stack([images[i]["image"] for i in range(first, min(first + ENCODE_BATCH, stop))])
                latents.append(encode(batch).to("cpu", torch.float16))
                if accelerator.is_main_process:
                    report(min(first + ENCODE_BATCH, stop), len(images))
            write_safetensors(shard, {"latents": torch.cat(latents)}, {})
    accelerator.wait_for_everyone()
    return LatentFolder(shards, images.captions, len(images))
