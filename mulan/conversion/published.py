"""Published checkpoints, converted while they come from Hugging Face: what there is, what it takes, the work itself.

`plan_download` says what would be downloaded and written, from headers alone; `Download.run` does it. What an
interrupted run has finished is kept, and the next one goes on with it.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..boundary.files import UnwritableError
from ..boundary.values import format_size
from ..checkpoints.quantization import FORMATS
from ..checkpoints.tensor_files import INDEX_NAMES, SINGLE_NAMES, WrongFileError, open_tensors
from .download_progress import DownloadProgress, Meter
from .hub import HubError, Repository, Retry, open_repository, parse_repository
from .hub_conversion import MODEL_FOLDERS, HubConversion, Placement, source_title
from .hub_tensors import WEIGHTS
from .output_files import CannotWriteError, ConversionResult, Output
from .unfinished import journals


@dataclass(frozen=True)
class Known:
    """One file that a published model is converted to: of which repository, and for which folder below models/."""

    source: str
    folder: str


_CHATS = (
    *(f"InternVL3_5-{size}B" for size in (1, 2, 4, 8)),
    *(f"InternVL3-{size}B" for size in (1, 2, 8)),
    *(f"InternVL2_5-{size}B" for size in (1, 2, 4, 8)),
)
KNOWN: dict[str, Known] = {
    "MuLan text encoder": Known("OpenGVLab/InternVL-14B-224px", "text_encoders"),
    **{
        f"MuLan adapter {name}": Known(f"mulanai/mulan-lang-adapter/{name}.pth", "mulan")
        for name in (
            "sd15_aesthetic",
            "sd15_base",
            "sd15_512_aesthetic",
            "sd21_aesthetic",
            "sd21_base",
            "sdxl_aesthetic",
            "pixart",
        )
    },
    "InternVL-C and -G": Known("OpenGVLab/InternVL-14B-224px", "internvl"),
    **{name: Known(f"OpenGVLab/{name}", "internvl_chat") for name in _CHATS},
    "VisionLLM v2": Known("OpenGVLab/VisionLLMv2", "visionllm"),
    "VisionLLM v2's InstructPix2Pix UNet": Known("OpenGVLab/VisionLLMv2", "diffusion_models"),
}


@dataclass(frozen=True)
class Download:
    """What is to be downloaded and written; a context manager, for its folder of configuration and tokenizer."""

    repository: Repository
    conversions: tuple[HubConversion, ...]
    files: ExitStack

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_) -> None:
        self.files.close()

    @property
    def outputs(self) -> list[Output]:
        return [output for each in self.conversions for output in each.outputs]

    @property
    def paths(self) -> list[Path]:
        """The files that were asked for, the main one first, there already or not."""
        return [path for each in self.conversions for path in each.paths]

    @property
    def size(self) -> int:
        """The bytes to download."""
        return sum(each.tensors.download_size(each.missing()) for each in self.conversions)

    @property
    def repository_size(self) -> int:
        """The bytes of all weights in the repository."""
        return sum(file.size for file in self.repository.files.values() if file.name.endswith(WEIGHTS))

    @property
    def disk(self) -> int:
        """The bytes of disk that are still needed."""
        shard = max((each.tensors.largest_shard(each.missing()) for each in self.conversions), default=0)
        return shard + sum(
            max(0, writer.size - file.held) for each in self.conversions for writer, file in each.writers()
        )

    @property
    def free(self) -> int:
        """The bytes of disk that are free."""
        return min((shutil.disk_usage(output.path.parent).free for output in self.outputs), default=0)

    def describe(self) -> str:
        """Return the plan in a few lines."""
        download, all_weights = format_size(self.size), format_size(self.repository_size)
        lines = [
            f"Download {download} of {all_weights} from {self.repository.title}.",
            f"Disk space: {format_size(self.disk)} needed, {format_size(self.free)} free.",
        ]
        missing = [output.path for output in self.outputs]
        lines += [f"{path}: already there" for path in self.paths if path not in missing]
        for each in self.conversions:
            for (writer, file), output in zip(each.writers(), each.outputs, strict=True):
                begun = f" ({len(file.done)} of {len(output.copies)} tensors from an earlier run)" if file.done else ""
                lines.append(f"{output.path}: {output.title}, {format_size(writer.size)}{begun}")
        return "\n".join(lines)

    def check_space(self) -> None:
        """Raise UnwritableError, with the plan, where the disk has too little room."""
        disk, free = self.disk, self.free
        if disk > free:
            raise UnwritableError(
                errno.ENOSPC,
                f"{format_size(disk)} are needed in {self.outputs[0].path.parent}, and its disk has "
                f"{format_size(free)} free: make room, or name another folder. The plan:\n{self.describe()}",
            )

    def run(self, progress: Callable[[DownloadProgress], None] = lambda _: None) -> list[ConversionResult]:
        """Download, convert and write everything; return a result for each checkpoint.

        `progress` is called about ten times a second, and may raise to stop: what is finished is kept. Raises HubError,
        UnwritableError, and WrongFileError for weights that are NaN or infinite.
        """
        self.check_space()
        meter = Meter(progress, self.size, sum(len(output.copies) for output in self.outputs))
        return [each.run(meter) for each in self.conversions if each.outputs]


def plan_download(
    source: str,
    target: Placement,
    weight_format: str | None = None,
    overwrite: bool = False,
    folders: Sequence[str] = (),
    on_wait: Callable[[], None] = lambda: None,
    retry: Retry | None = None,
) -> Download:
    """Plan the conversion of a repository: `owner/name[@revision][/file]` or a name of `KNOWN`.

    `target` is a file, a folder, or what gives the folder of each folder below models/. Only the outputs for `folders`
    are made, all where there are none. `on_wait` is called while waiting for the hub, and may raise to stop.
    Raises HubError, WrongFileError where no converter takes the checkpoint, CannotWriteError for target or format.
    """
    known = KNOWN.get(source)
    source, folders = (known.source, (known.folder,)) if known else (source, folders)
    id = (parse_repository(source) or (source,))[0]
    places = {target(name) for name in MODEL_FOLDERS} if callable(target) else {target, target.parent}
    begun = next((each.key for each in journals(places) if each.key.get("repository") == id), {})
    repository = open_repository(source, on_wait, begun.get("revision"), retry)
    with ExitStack() as undo:
        files = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="mulan-")))
        conversions = [
            HubConversion(repository, name, files, target, weight_format, overwrite, folders, on_wait)
            for name in _checkpoints(repository)
        ]
        if not any(each.paths for each in conversions):
            raise CannotWriteError(f"{repository.title} holds nothing for models/{' or models/'.join(folders)}")
        return Download(repository, tuple(conversions), undo.pop_all())


def find_made(source: str, weight_format: str, models: Callable[[str], Mapping[str, Path]]) -> str | None:
    """Return which of `models(folder below models/)` is a model of `KNOWN` in this format; None where none is.

    Converted files are known by their metadata; an adapter also by its published name.
    """
    known = KNOWN[source]
    id, _, published = parse_repository(known.source) or ("", None, None)
    wanted = {"source": source_title(id, published)}
    if known.folder not in ("mulan", "diffusion_models"):  # those keep float16
        quantization = FORMATS[weight_format]
        wanted["quantization"] = quantization.algorithm if quantization else "none"
    return next(
        (name for name, path in models(known.folder).items() if path.name == published or _says(path, wanted)), None
    )


def _says(path: Path, wanted: Mapping[str, str]) -> bool:
    try:
        return path.suffix == ".safetensors" and wanted.items() <= open_tensors(path).metadata.items()
    except WrongFileError:
        return False


def _checkpoints(repository: Repository) -> list[str | None]:
    """Return the files of a repository that are checkpoints of their own; [None] where it is one as a whole."""
    if repository.wanted is not None:
        return [repository.wanted]
    if any(name in repository.files for name in (*INDEX_NAMES, *SINGLE_NAMES)):
        return [None]
    found = sorted(name for name in repository.files if name.endswith(WEIGHTS))
    if not found:
        raise HubError(f"{repository.title} holds no weights: it has {', '.join(sorted(repository.files)[:20])}")
    return list(found)
