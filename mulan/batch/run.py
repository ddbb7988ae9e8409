"""A run from its settings to its results."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..boundary.files import remove_abandoned
from ..servers.credentials import read_addresses, read_headers, server_name
from ..servers.workflow import Graph, load_workflow
from .driver import Driver, Watcher
from .journal import Journal
from .node_inputs import NodeCatalog
from .placeholders import Placeholder, parse_placeholders
from .progress import Progress
from .ray_fleet import RayFleet, RemoteServer, start_ray
from .ray_servers import NoServersError, StartedServers
from .report import write_report
from .rows import LANGUAGE, BadRow, Row, Rows, read_rows
from .scheduler import Scheduler
from .stages import DrawingWork, EncodingWork, Stages, split
from .table import read_table
from .two_stages import DrawingWatcher, EncodingWatcher, Roles, TwoStages, read_encoders, roles
from .work import FILES, RowWork, Work

READY_WITHIN = 600.0  # seconds for servers that Ray starts
BAD_SHOWN = 20
ENCODINGS = "conditioning"  # below the folder of a run: the prompts of two stages


@dataclass(frozen=True)
class Settings:
    """What a command line says."""

    table: Path
    workflow: Path
    out: Path
    placeholders: Sequence[str]
    servers: Sequence[str] = ()
    start: int = 0
    encoders: Sequence[str] = ()
    comfyui: Path | None = None
    cpu: bool = False
    comfyui_arguments: Sequence[str] = ()
    ray: str | None = None
    headers: Sequence[str] = ()
    header_file: Path | None = None
    id_column: str = "id"
    language_column: str = LANGUAGE
    attempts: int = 3
    depth: int = 2
    give_up: float = 600.0
    patience: float = 15.0
    retry_failed: bool = False
    check_only: bool = False


@dataclass
class Ended:
    """How a run ended. stopped: why before its end, or empty."""

    done: int
    failed: int
    stopped: str = ""


def run(settings: Settings, say: Callable[[str], None] = print) -> Ended:
    """Run a table; what an earlier run into the same folder has done is not done again.

    Raises ValueError, OSError, RuntimeError and ImportError with what keeps it from starting.
    """
    import pyarrow.parquet  # noqa: F401  (used at the end: here its absence is noticed)

    workflow = load_workflow(settings.workflow)
    placeholders = parse_placeholders(workflow, settings.placeholders)
    drawing, encoders = read_addresses(settings.servers), read_encoders(settings.encoders)
    urls = list(dict.fromkeys((*drawing, *(encoders.urls if encoders else ()))))
    of = roles(encoders, urls, drawing, settings.start) if encoders else None
    headers = read_headers(settings.header_file, settings.headers, urls)
    next(read_table(settings.table), None)  # says what is wrong with it as a whole, before servers are started
    with ExitStack() as stack:
        journal = None if settings.check_only else stack.enter_context(Journal(settings.out))
        if journal and journal.dropped:
            say(f"{journal.dropped} unreadable line(s) of the journal are left out: these rows run again")
        ray, dashboard = start_ray(settings.ray)
        stack.callback(ray.shutdown)
        if dashboard:
            say(f"Ray's dashboard: http://{dashboard}")
        if settings.start:
            folder = settings.out.absolute() / "servers"
            started = StartedServers(
                ray, _comfyui(settings), settings.start, settings.cpu, settings.comfyui_arguments, folder
            )
            urls += stack.enter_context(started).urls
            say(f"starting {settings.start} x ComfyUI: {', '.join(urls[-settings.start :])}")
        else:
            started = None
        fleet = RayFleet(ray, [RemoteServer(url, headers.get(url, {}), settings.patience) for url in urls])
        stack.callback(fleet.close)
        return asyncio.run(_run(settings, workflow, placeholders, urls, fleet, started, journal, of, say))


async def _run(
    settings: Settings,
    workflow: Graph,
    placeholders: Sequence[Placeholder],
    urls: Sequence[str],
    fleet: RayFleet,
    started: StartedServers | None,
    journal: Journal | None,
    of: Roles | None,
    say: Callable[[str], None],
) -> Ended:
    names = [server_name(url) for url in urls]
    infos = await _open(fleet, started)
    catalogs = {index: NodeCatalog(names[index], info) for index, info in enumerate(infos) if isinstance(info, dict)}
    for info in infos:
        if isinstance(info, str):
            say(f"left out until it answers: {info}")
    if not catalogs:
        raise NoServersError("no server answers. Check the addresses, and that ComfyUI runs with --listen.")
    stages = split(workflow, next(iter(catalogs.values()))) if of else None
    rows = _checked_rows(settings, workflow, placeholders, catalogs, of, stages)
    for bad in rows.bad[:BAD_SHOWN]:
        say(f"line {bad.line}: {bad.problem}")
    if len(rows.bad) > BAD_SHOWN:
        say(f"... and {len(rows.bad) - BAD_SHOWN} more bad rows")
    if journal is None:
        say(f"{len(rows.good)} rows can run, {len(rows.bad)} cannot, on {len(catalogs)} of {len(urls)} servers")
        return Ended(0, len(rows.bad))
    if settings.retry_failed:
        journal.forget_failures()
    if missing := journal.drop_missing():
        say(f"the files of {missing} rows are gone: these rows run again")
    scheduler = Scheduler(len(urls), settings.depth, settings.attempts)
    keys = {row.key for row in rows.good}
    before = sum(key in journal.done or key in journal.failed for key in keys)
    say(f"{len(keys)} rows, {before} of them ended in earlier runs; {len(rows.bad)} bad rows; {len(catalogs)} servers")
    progress = Progress(names, len(keys), before, scheduler)
    bad_records = [_bad_record(bad) for bad in rows.bad]

    def make_driver(work: Work, into: Journal, watcher: Watcher, waiting: Container[int] = ()) -> Driver:
        rest = settings.give_up, (lambda: journal.fold(keys, bad_records)) if into is journal else into.fold, waiting
        order = scheduler if into is journal else Scheduler(len(urls), settings.depth, settings.attempts)
        return Driver(work, fleet, into, order, names, watcher, *rest)

    down = [index for index in range(len(urls)) if index not in catalogs]
    if of and stages:
        reason = await _run_stages(TwoStages(of, say), stages, rows.good, journal, make_driver, progress, down)
    else:
        work = RowWork(rows.good, workflow, journal.folder.absolute())
        driver = make_driver(work, journal, progress)
        with _stops(driver.stop):
            reason = await driver.run(down)
    progress.end()
    return _finish(journal, workflow, keys, bad_records, reason, say)


async def _run_stages(
    both: TwoStages,
    stages: Stages,
    rows: Sequence[Row],
    journal: Journal,
    make_driver: Callable[..., Driver],
    progress: Progress,
    down: Sequence[int],
) -> str:
    """Run the rows that have not ended in two stages; return why they stopped, or "".

    What is encoded has a journal of its own.
    """
    out = journal.folder.absolute()
    rows = [row for row in rows if row.key not in journal.done and row.key not in journal.failed]
    with Journal(out / ENCODINGS) as encodings:
        encodings.forget_failures()  # rows that failed with them are not among these
        encodings.drop_missing()
        encoding = EncodingWork(rows, stages, encodings.folder)
        drawing = DrawingWork(rows, stages, out, encoding.needs, encodings)
        both.expect(encoding.needed_by, encodings.done, len(rows))
        encoder = make_driver(encoding, encodings, EncodingWatcher(both, progress, encoding.key))
        drawer = make_driver(drawing, journal, DrawingWatcher(both, progress), both.waiting)
        with _stops(both.stop):
            return await both.run(encoder, drawer, down)


def _finish(
    journal: Journal, workflow: Graph, keys: set[str], bad: Sequence[dict], reason: str, say: Callable[[str], None]
) -> Ended:
    """Write manifest, failures and, when all ended, the report."""
    try:
        for folder in (*(journal.folder / FILES).glob("*"), *(journal.folder / ENCODINGS / FILES).glob("*")):
            remove_abandoned(folder)  # of workers that were killed
        journal.fold(keys, bad)
        if not reason:
            for note in write_report(journal, workflow, keys):
                say(note)
    except OSError as error:  # a full disk; the journal has all that is done
        reason = reason or str(error)
    done = sum(key in journal.done for key in keys)
    failed = sum(key in journal.failed for key in keys) + len(bad)
    return Ended(done, failed, reason)


def _checked_rows(
    settings: Settings,
    workflow: Graph,
    placeholders: Sequence[Placeholder],
    catalogs: Mapping[int, NodeCatalog],
    of: Roles | None,
    stages: Stages | None,
) -> Rows:
    parts: dict[str, list[Graph]] = {}  # of the workflow, by the server that gets them
    for index, catalog in catalogs.items():
        parts[catalog.server] = stages.parts(index in of.encoders, index in of.drawers) if of and stages else [workflow]
        for graph in parts[catalog.server]:
            catalog.check_workflow(graph, [each for each in placeholders if each.node in graph])
    return read_rows(
        read_table(settings.table),
        workflow,
        placeholders,
        list(catalogs.values()),
        settings.table.absolute().parent,
        settings.id_column,
        settings.language_column,
        lambda catalog, each: any(each.node in graph for graph in parts[catalog.server]),
    )


async def _open(fleet: RayFleet, started: StartedServers | None) -> list[dict | str]:
    """Return what the servers have; those that were just started are waited for."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_WITHIN
    while True:
        infos = await fleet.open()
        if started is None or all(isinstance(info, dict) for info in infos):
            return infos
        started.check()
        if loop.time() > deadline:
            return infos
        await asyncio.sleep(1.0)


def _comfyui(settings: Settings) -> Path:
    """Return ComfyUI's folder. Raises NoServersError."""
    pack = Path(__file__).absolute().parents[2]
    given = settings.comfyui
    for folder in (given.absolute(),) if given else (pack.parents[1], Path.cwd(), *Path.cwd().parents):
        if (folder / "main.py").is_file() and (folder / "folder_paths.py").is_file():
            return folder
    where = f"{given} is not ComfyUI's folder" if given else "ComfyUI's folder is not above the pack"
    raise NoServersError(f"--start: {where}. Name it with --comfyui.")


def _bad_record(bad: BadRow) -> dict[str, Any]:
    return {"key": "", "id": bad.id, "line": bad.line, "error": bad.problem, "server": "", "attempts": 0}


@contextmanager
def _stops(stop_driver: Callable[[str], None]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop a driver clean."""
    loop = asyncio.get_running_loop()

    def stop(*_: Any) -> None:
        loop.call_soon_threadsafe(stop_driver, "stopped")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
