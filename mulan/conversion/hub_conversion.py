"""One checkpoint of a repository, converted while it comes: its tensors, the files to write, and what is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from .. import VERSION
from ..checkpoints.quantization import NotFiniteError, TooLargeError
from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from ..checkpoints.tensor_files import WrongFileError
from .converters import plan_conversion
from .download_progress import Meter
from .hub import Repository
from .hub_tensors import HubTensors
from .output_files import ConversionResult, Copy, Output, Target
from .unfinished import UnfinishedFile, read_journal

# Folders below models/ that converted files belong in
MODEL_FOLDERS = ("text_encoders", "mulan", "internvl", "internvl_chat", "visionllm", "diffusion_models")

Placement = Path | Callable[[str], Path]  # a file, a folder, or the folder for each folder below models/


def source_title(id: str, file: str | None) -> str:
    """Return what the metadata of a converted file says of where it comes from."""
    return f"{id}{f'/{file}' if file else ''} on Hugging Face"


class HubConversion:
    """One checkpoint of `repository`: its file `name`, or all of it where that is None.

    `target` is where the outputs go, of those that are for `folders` below models/ (all where there are none);
    `files` is a folder for configuration and tokenizer, `on_wait` is called while waiting for the hub.
    Raises HubError, WrongFileError, CannotWriteError.
    """

    def __init__(
        self,
        repository: Repository,
        name: str | None,
        files: Path,
        target: Placement,
        weight_format: str | None,
        overwrite: bool,
        folders: Sequence[str],
        on_wait: Callable[[], None],
    ):
        self._repository = repository
        folder = files / repository.id.split("/")[-1]
        one_file = target if isinstance(target, Path) and not target.is_dir() else None
        work = target((*folders, *MODEL_FOLDERS)[0]) if callable(target) else one_file.parent if one_file else target
        self.tensors = HubTensors(repository, name, folder, work, on_wait)
        path = self.tensors.file.path
        try:
            plan = plan_conversion(self.tensors.file, Target(path, one_file or files, True), weight_format)
        except WrongFileError as error:  # its words are for files that a user has
            raise WrongFileError(str(error).replace(f"(in {path.parent})", f"(of {repository.title})")) from error
        self.notes = plan.notes
        self.outputs: list[Output] = []
        self.paths: list[Path] = []  # of the outputs, and of those that are there already
        for output in plan.outputs:
            if folders and output.folder not in folders:
                continue
            placed = target(output.folder) if callable(target) else target
            where = output.path if one_file else placed / output.path.name
            self.paths.append(where)
            if where.exists() and not overwrite:
                continue
            Target(path, where, overwrite).checked(where)
            metadata = {**output.metadata, "source": source_title(repository.id, name), "revision": repository.revision}
            self.outputs.append(replace(output, path=where, metadata=metadata, source=None))
        self._needed = {
            copy.stored: self.tensors.needed(output.read, copy.stored)
            for output in self.outputs
            for copy in output.copies
        }

    def writers(self) -> list[tuple[SafetensorsWriter, UnfinishedFile]]:
        """Return what writes each output, ready to go on with what is there; nothing is opened."""
        writers = []
        for output in self._with_bfloat16():
            file = UnfinishedFile(output.path, self._key(output))
            spare = sum(spec.dtype == torch.float16 for spec in output.layout.values())  # it becomes BF16 perhaps
            writers.append((SafetensorsWriter(file, output.layout, output.metadata, spare), file))
        return writers

    def missing(self) -> list[str]:
        """Return the tensors of the checkpoint that are still to be read, in the order of the files."""
        stored = dict.fromkeys(
            copy.stored
            for output, (_, file) in zip(self.outputs, self.writers(), strict=True)
            for copy in output.copies
            if copy.stored not in file.done
        )
        return [name for each in sorted(stored, key=self._position) for name in self._needed[each]]

    def run(self, meter: Meter) -> ConversionResult:
        self.tensors.on_wait, self.tensors.on_bytes = meter.look, meter.received
        self.tensors.reading = True
        try:
            while True:
                try:
                    return self._write(meter)
                except TooLargeError:  # the journals know them now: the next round writes them in bfloat16
                    meter.again()
        except NotFiniteError as error:
            raise WrongFileError(f"{self._repository.title}: {error}, as it is published") from error
        finally:
            self.tensors.close()

    def _write(self, meter: Meter) -> ConversionResult:
        outputs = self._with_bfloat16()
        writers = self.writers()
        waiting: dict[str, list[tuple[SafetensorsWriter, UnfinishedFile, Copy]]] = {}
        with ExitStack() as stack:
            for output, (writer, file) in zip(outputs, writers, strict=True):
                stack.enter_context(writer)
                for name, tensor in output.extra.items():
                    writer.write(name, tensor)
                for copy in output.copies:
                    if copy.stored in file.done:
                        for name in copy.names:
                            writer.keep(name)
                        meter.tensors += 1
                    else:
                        waiting.setdefault(copy.stored, []).append((writer, file, copy))
            order = sorted(waiting, key=self._position)
            self.tensors.follow([name for stored in order for name in self._needed[stored]])
            read = outputs[0].read
            too_large: TooLargeError | None = None
            for stored in order:
                tensor = read(stored)
                for writer, file, copy in waiting[stored]:
                    try:
                        for name, rows, first_row in copy.chunks(tensor):
                            writer.write(name, rows, first_row)
                            meter.look()
                    except TooLargeError as error:
                        file.needs_bfloat16(stored)
                        too_large = error
                        continue
                    file.finished(stored)
                    meter.tensors += 1
                del tensor
            if too_large is not None:
                raise too_large
        main, *beside = (
            ConversionResult(output.path, output.title, writer.size, output.folder)
            for output, (writer, _) in zip(outputs, writers, strict=True)
        )
        return replace(main, beside=tuple(beside), notes=self.notes)

    def _position(self, stored: str) -> tuple[str, int]:
        needed = self._needed[stored]
        return self.tensors.position(needed[0]) if needed else ("", 0)

    def _with_bfloat16(self) -> list[Output]:
        """Return the outputs, with bfloat16 for what earlier rounds found too large for float16."""
        found = []
        for output in self.outputs:
            journal = read_journal(output.path)
            large = journal.large if journal is not None and journal.key == self._key(output) else set()
            copies = tuple(
                replace(copy, precision=torch.bfloat16) if copy.stored in large else copy for copy in output.copies
            )
            layout = {
                **output.layout,
                **{
                    copy.name: TensorSpec(torch.bfloat16, output.layout[copy.name].shape)
                    for copy in copies
                    if copy.stored in large
                },
            }
            found.append(replace(output, copies=copies, layout=layout))
        return found

    def _key(self, output: Output) -> dict[str, str]:
        """Return of what an unfinished file is made: only the same can be gone on with."""
        layout = [(name, spec.dtype.itemsize, spec.shape) for name, spec in sorted(output.layout.items())]
        copies = [(copy.name, copy.stored) for copy in output.copies]
        content = json.dumps([layout, copies, sorted(output.metadata.items()), VERSION])
        return {
            "repository": self._repository.id,
            "revision": self._repository.revision,
            "content": hashlib.sha256(content.encode()).hexdigest(),
        }
