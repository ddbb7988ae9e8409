"""A run in two stages: some servers encode prompts while the others draw the rows whose prompts are encoded.

Two drivers share the servers. What the first one encodes releases rows of the second; when nothing is left to encode,
its servers draw, too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from ..servers.credentials import read_addresses
from .driver import Driver, Watcher
from .worker import Outcome

AUTO = "auto"
MEASURED = 3  # prompts, and rows, that a plan is made from


class EncodersError(ValueError):
    """What --encoders says cannot be done."""


@dataclass(frozen=True)
class Encoders:
    """What --encoders says: addresses, or how many of the other servers; with 0, measured times say that."""

    count: int = 0
    urls: Sequence[str] = ()


def read_encoders(texts: Sequence[str]) -> Encoders | None:
    """Read "auto", a number or addresses; return None for nothing. Raises EncodersError, AddressError."""
    if not texts:
        return None
    if texts == [AUTO]:
        return Encoders()
    if len(texts) == 1 and texts[0].isdecimal() and int(texts[0]):
        return Encoders(int(texts[0]))
    if not all("://" in text for text in texts):
        raise EncodersError(f"--encoders {' '.join(texts)}: write {AUTO}, a number of servers, or addresses.")
    return Encoders(urls=read_addresses(texts, "--encoders"))


@dataclass(frozen=True)
class Roles:
    """What servers do, by number: those that may encode, and those that draw. count: of those that do encode, the
    first ones; 0 where measured times say how many.
    """

    encoders: Sequence[int]
    drawers: Sequence[int]
    count: int

    @property
    def servers(self) -> list[int]:
        """All of them."""
        return sorted({*self.encoders, *self.drawers})


def roles(said: Encoders, urls: Sequence[str], drawing: Sequence[str], start: int) -> Roles:
    """Return what servers do: those of `urls`, and behind them `start` more. drawing: those of --servers.

    Raises EncodersError.
    """
    drawers = [number for number, url in enumerate(urls) if url in drawing]
    drawers += range(len(urls), len(urls) + start)
    if said.urls:
        return Roles([urls.index(url) for url in said.urls], drawers, len(said.urls))
    if said.count > len(drawers):
        raise EncodersError(f"--encoders {said.count} is more than all servers ({len(drawers)}). Name fewer.")
    return Roles(drawers, drawers, said.count)


def plan(servers: int, encode: float, draw: float) -> int:
    """Return how many servers must encode so that the others never wait; no more, as each holds the text encoder.

    encode: seconds per row, for what is not encoded for another row already. draw: seconds per row, for the rest.
    """
    return max(1, min(servers - 1, math.ceil(servers * encode / (encode + draw) - 1e-9)))


@dataclass
class _Times:
    """Seconds of what ended, without the first of each server, which loads models."""

    seconds: list[float] = field(default_factory=list)
    _warm: set[int] = field(default_factory=set)

    def add(self, server: int, seconds: float) -> None:
        if server in self._warm:
            self.seconds.append(max(seconds, 1e-3))
        self._warm.add(server)


class TwoStages:
    """Who encodes, which rows can be drawn, and the plan: `expect` rows, then `run` them."""

    def __init__(self, of: Roles, say: Callable[[str], None]):
        self._roles, self._say = of, say
        self._rows, self._needed_by = 0, {}
        self._missing: dict[int, int] = {}  # row -> its prompts that are not encoded
        self._encoding = list(of.encoders[: of.count or 1])
        self._away: set[int] = set()
        self._encode, self._draw = _Times(), _Times()
        self._planned = False

    def expect(self, needed_by: Mapping[str, Sequence[int]], encoded: Container[str], rows: int) -> None:
        """Take in how many rows there are, which of them need which prompt, by its key, and what is encoded already."""
        self._rows = rows
        self._needed_by = {key: needing for key, needing in needed_by.items() if key not in encoded}
        for needing in self._needed_by.values():
            for row in needing:
                self._missing[row] = self._missing.get(row, 0) + 1
        before = len(needed_by) - len(self._needed_by)
        self._say(f"two stages: {len(needed_by)} prompts, {before} of them encoded in earlier runs")

    @property
    def waiting(self) -> set[int]:
        """Rows that wait for a prompt."""
        return set(self._missing)

    async def run(self, encoder: Driver, drawer: Driver, down: Sequence[int] = ()) -> str:
        """Run both drivers to their end; return why they stopped before, or ""."""
        self._encoder, self._drawer = encoder, drawer
        self._assign()
        reason, _ = await asyncio.gather(self._run_drawer(down), self._run_encoder(down))
        return reason

    def stop(self, reason: str) -> None:
        """Let both drivers end soon."""
        self._encoder.stop(reason)
        self._drawer.stop(reason)

    async def _run_drawer(self, down: Sequence[int]) -> str:
        reason = await self._drawer.run(down)
        self._encoder.stop(reason or "no row needs it")
        return reason

    async def _run_encoder(self, down: Sequence[int]) -> None:
        if reason := await self._encoder.run(down):
            self._drawer.stop(reason)
        self._encoding = []
        self._assign()

    def _assign(self) -> None:
        """Tell both drivers which servers are theirs."""
        free = {server for server in self._roles.drawers if server not in self._encoding and server not in self._away}
        for server in self._roles.servers:
            self._encoder.let_take(server, server in self._encoding)
            self._drawer.let_take(server, server in (free or self._roles.drawers))

    # --- what is heard

    def encoded(self, key: str, server: int, seconds: float) -> None:
        """Hear that a prompt is encoded."""
        self._encode.add(server, seconds)
        for row in self._needed_by[key]:
            if row in self._missing:
                self._missing[row] -= 1
                if not self._missing[row]:
                    del self._missing[row]
                    self._drawer.release(row)
        self._plan()

    def not_encoded(self, key: str, message: str) -> None:
        """Hear that a prompt cannot be encoded."""
        for row in self._needed_by[key]:
            if self._missing.pop(row, 0):
                self._drawer.refuse(row, f"its prompt could not be encoded: {message}")

    def drawn(self, server: int, seconds: float) -> None:
        """Hear that a row is drawn."""
        self._draw.add(server, seconds)
        self._plan()

    def away(self, server: int) -> None:
        """Hear that a server does not answer; another one encodes in its place."""
        self._away.add(server)
        others = [each for each in self._roles.encoders if each not in self._away and each not in self._encoding]
        if server in self._encoding and others:
            self._encoding[self._encoding.index(server)] = others[0]
        self._assign()

    def back(self, server: int) -> None:
        """Hear that a server answers again."""
        self._away.discard(server)
        self._assign()

    def _plan(self) -> None:
        """Say once what was measured, and follow it where no number of encoders was given."""
        if self._planned or min(len(self._encode.seconds), len(self._draw.seconds)) < MEASURED:
            return
        self._planned = True
        prompt, draw = median(self._encode.seconds), median(self._draw.seconds)
        servers = len(self._roles.servers)
        best = plan(servers, prompt * len(self._needed_by) / self._rows, draw) if servers > 1 else 1
        self._say(
            f"plan: a prompt takes {prompt:.2f} s, and {self._rows} rows have {len(self._needed_by)}; to draw a row "
            f"takes {draw:.2f} s: of {servers} servers, {best} to encode and {servers - best or servers} to draw"
            + (f" (--encoders: {self._roles.count})" if self._roles.count else "")
        )
        if not self._roles.count and self._encoding:
            free = [each for each in self._roles.encoders if each not in self._away and each not in self._encoding]
            self._encoding += free[: max(best - len(self._encoding), 0)]
            self._assign()


class _Passing(Watcher):
    """Tells the plan and the progress who is away."""

    def __init__(self, stages: TwoStages, progress: Watcher):
        self.stages, self.progress = stages, progress

    def away(self, server: int, message: str) -> None:
        self.progress.away(server, message)
        self.stages.away(server)

    def back(self, server: int) -> None:
        self.progress.back(server)
        self.stages.back(server)

    def tick(self) -> None:
        self.progress.tick()


class EncodingWatcher(_Passing):
    """Hears from the driver that encodes. key: of a task."""

    def __init__(self, stages: TwoStages, progress: Watcher, key: Callable[[int], str]):
        super().__init__(stages, progress)
        self._key = key

    def done(self, server: int, task: int, outcome: Outcome) -> None:
        self.stages.encoded(self._key(task), server, outcome.seconds)

    def failed(self, server: int, task: int, outcome: Outcome, again: bool) -> None:
        if not again:
            self.stages.not_encoded(self._key(task), outcome.message)


class DrawingWatcher(_Passing):
    """Hears from the driver that draws."""

    def done(self, server: int, task: int, outcome: Outcome) -> None:
        self.stages.drawn(server, outcome.seconds)
        self.progress.done(server, task, outcome)

    def failed(self, server: int, task: int, outcome: Outcome, again: bool) -> None:
        self.progress.failed(server, task, outcome, again)
