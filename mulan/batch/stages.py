"""A workflow cut in two: graphs that encode a prompt to a file, and one that draws from such files.

The cut goes through each CONDITIONING that a node with a CLIP gives. Behind it, in the first stage, is MuLan Save
Conditioning; before it, in the second, MuLan Load Conditioning. Files travel through this machine: /view gives them,
and /upload/image puts them into the input folder, which MuLan Load Conditioning reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..servers.workflow import Graph, WorkflowError
from .journal import Journal
from .node_inputs import NodeCatalog
from .placeholders import canonical, fill, title
from .rows import FOLDER, Row, prompt_id
from .work import FILES, PER_FOLDER, RowWork
from .worker import Job

SAVER, READER = "MuLanSaveConditioning", "MuLanLoadConditioning"
UNUSED = {"MuLanLoader": ("model", "clip")}  # what a CLIP does not depend on: class -> inputs
Link = tuple[str, int]  # node, number of its output


@dataclass(frozen=True)
class Stages:
    """A workflow cut in two.

    encoders: where it is cut -> the graph that saves what is encoded there. sampler: the rest; its nodes that load
    are named by `reader`.
    """

    encoders: Mapping[Link, Graph]
    sampler: Graph

    def parts(self, encodes: bool, draws: bool) -> list[Graph]:
        """Return the graphs that a server gets."""
        return [*self.encoders.values()] * encodes + [self.sampler] * draws


def split(workflow: Graph, catalog: NodeCatalog) -> Stages:
    """Cut a workflow. Raises WorkflowError with what keeps it from being cut."""

    def kind(link: Link) -> str:
        kinds = catalog.outputs(workflow[link[0]]["class_type"])
        return kinds[link[1]] if link[1] < len(kinds) else ""

    takes_clip = {node for node in workflow if any(kind(link) == "CLIP" for link in _links(workflow, node))}
    cuts: set[Link] = set()
    needed: set[str] = set()
    waiting = [node for node, of in workflow.items() if catalog.is_output(of["class_type"])]
    while waiting:
        node = waiting.pop()
        if node in needed:
            continue
        needed.add(node)
        if node in takes_clip and "CLIP" not in catalog.outputs(workflow[node]["class_type"]):
            raise WorkflowError(
                f"--encoders: {title(workflow, node)} (node {node}) takes a CLIP and is used for more than a "
                "CONDITIONING, so it cannot be encoded beforehand. Remove it, or leave --encoders out."
            )
        for link in _links(workflow, node):
            if link[0] in takes_clip and kind(link) == "CONDITIONING":
                cuts.add(link)
            else:
                waiting.append(link[0])
    if not cuts:
        raise WorkflowError("--encoders: no node of the workflow makes a CONDITIONING of a CLIP. Leave --encoders out.")
    sampler = {node: {**of, "inputs": _rewired(of["inputs"], cuts)} for node, of in workflow.items() if node in needed}
    sampler |= {reader(cut): {"class_type": READER, "inputs": {}} for cut in cuts}
    return Stages({cut: _encoder(workflow, cut) for cut in sorted(cuts)}, sampler)


def reader(cut: Link) -> str:
    """Return the id of the node that loads what is encoded at a cut."""
    return f"{cut[0]}.{cut[1]}"


def _encoder(workflow: Graph, cut: Link) -> Graph:
    """Return the graph that saves what a node encodes: the node, what it needs, and the saving node."""
    pruned = {
        node: {
            **of,
            "inputs": {
                name: value for name, value in of["inputs"].items() if name not in UNUSED.get(of["class_type"], ())
            },
        }
        for node, of in workflow.items()
    }
    needed, waiting = set(), [cut[0]]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += [link[0] for link in _links(pruned, node)]
    saver = {"class_type": SAVER, "inputs": {"conditioning": list(cut), "filename_prefix": ""}}
    return {**{node: of for node, of in pruned.items() if node in needed}, f"{reader(cut)}.save": saver}


def _rewired(inputs: Mapping, cuts: set[Link]) -> dict:
    return {
        name: [reader(link), 0] if (link := _link(value)) and link in cuts else value for name, value in inputs.items()
    }


def _links(graph: Graph, node: str) -> Iterator[Link]:
    for value in graph[node]["inputs"].values():
        if (link := _link(value)) and link[0] in graph:
            yield link


def _link(value) -> Link | None:
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
    return (value[0], value[1]) if is_link else None


class EncodingWork:
    """A task per prompt: rows that have the same one, filled in at the same cut, share it."""

    def __init__(self, rows: Sequence[Row], stages: Stages, folder: Path):
        self._rows, self._stages, self._folder = rows, stages, folder
        self._tasks: list[tuple[str, int, Link]] = []  # key, first row that needs it, cut
        self.needs: list[dict[Link, str]] = []  # of each row: cut -> key
        self.needed_by: dict[str, list[int]] = {}  # key -> rows
        for number, row in enumerate(rows):
            needs = {}
            for cut, graph in stages.encoders.items():
                text = canonical(fill(graph, dict(row.values), ""))  # its saving node is named by the cut
                key = needs[cut] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
                if key not in self.needed_by:
                    self.needed_by[key] = []
                    self._tasks.append((key, number, cut))
                self.needed_by[key].append(number)
            self.needs.append(needs)

    def __len__(self) -> int:
        return len(self._tasks)

    def key(self, task: int) -> str:
        return self._tasks[task][0]

    def job(self, task: int, attempt: int) -> Job:
        key, row, cut = self._tasks[task]
        graph = fill(self._stages.encoders[cut], dict(self._rows[row].values), f"{FOLDER}/{key}")
        stem = f"{FILES}/{task // PER_FOLDER:04}/{key}"
        uploads = _used(self._rows[row], graph)
        return Job(key, prompt_id(key, attempt), graph, self._folder, stem, uploads, must_save=True)

    def record(self, task: int) -> dict:
        key, row, cut = self._tasks[task]
        columns = {f"{node}.{name}": value for (node, name), value in self._rows[row].values if node == cut[0]}
        return {"key": key, "id": key, "line": self._rows[row].line, "language": "", "columns": columns}


class DrawingWork(RowWork):
    """A task per row, which draws from the files that `encodings` has."""

    def __init__(
        self, rows: Sequence[Row], stages: Stages, folder: Path, needs: Sequence[Mapping[Link, str]], encodings: Journal
    ):
        super().__init__(rows, stages.sampler, folder)
        self._needs, self._encodings = needs, encodings

    def job(self, task: int, attempt: int) -> Job:
        plain, row = super().job(task, attempt), self._rows[task]
        graph, uploads = dict(plain.graph), list(_used(row, plain.graph))
        for cut, key in self._needs[task].items():
            (file,) = self._encodings.record(key)["files"]
            name = f"{FOLDER}/{file['sha256'][:32]}{Path(file['name']).suffix}"
            graph[reader(cut)] = {**graph[reader(cut)], "inputs": {"file": name}}
            uploads.append((self._encodings.folder.absolute() / file["name"], name))
        return Job(plain.key, plain.prompt_id, graph, plain.folder, plain.stem, tuple(uploads))


def _used(row: Row, graph: Graph) -> tuple[tuple[Path, str], ...]:
    """Return the files that a part of the workflow takes of a row."""
    names = {value for of in graph.values() for value in of["inputs"].values() if isinstance(value, str)}
    return tuple((upload.path, upload.name) for upload in row.uploads if upload.name in names)
