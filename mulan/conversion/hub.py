"""Files of a repository on Hugging Face, read in ranges: pinned to one commit, checked against the hub's sizes.

All requests go through huggingface_hub, which knows mirrors (HF_ENDPOINT), tokens, proxies, the cache and offline mode.
They run in threads of their own, so that whoever waits for them can stop at any time.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .. import VERSION
from ..boundary.read_ahead import read_ahead

CHUNK = 2**16  # bytes that one read of a connection returns, at most
TIMEOUT = 30.0  # seconds without a byte after which a connection counts as cut
LONGEST_WAIT = 600.0  # seconds that a hub may ask to wait

_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
# What the client library of the installed huggingface_hub raises: requests' errors are OSErrors, httpx's share a base
_NETWORK_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)  # pyright: ignore
_REPOSITORY = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[\w.-]+))?"
)


class HubError(OSError):
    """A repository or one of its files cannot be had; the message says which, why and what to do."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its size in bytes, its sha256 where the hub knows it, its place in the local cache."""

    name: str
    size: int
    sha256: str | None = None
    cached: Path | None = None


@dataclass(frozen=True)
class Retry:
    """How often to try without a byte between, and the seconds to wait: `first`, doubled each time up to `longest`."""

    attempts: int = 8
    first: float = 1.0
    longest: float = 30.0


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. `wanted`: the one file of it that the user asked for, all where it is None."""

    id: str
    revision: str
    files: dict[str, HubFile]
    wanted: str | None = None
    retry: Retry = field(default_factory=Retry)

    @property
    def title(self) -> str:
        return f"{self.id} at revision {self.revision[:12]}"

    def stream(self, file: HubFile, start: int, end: int, stopped: threading.Event) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a file; wait and go on behind the last byte where the connection fails.

        Ends early once `stopped` is set. Raises HubError.
        """
        if file.cached is not None:
            yield from _read_cached(file.cached, start, end, stopped)
            return
        failures = 0
        while start < end and not stopped.is_set():
            try:
                for chunk in self._request(file, start, end):
                    failures, start = 0, start + len(chunk)
                    yield chunk
                    if stopped.is_set():
                        return
                if start < end:
                    raise ConnectionError("the connection was cut")
            except HubError:
                raise
            except _NETWORK_ERRORS as error:
                failures += 1
                _wait(self.retry, failures, error, f"{file.name} of {self.id}", stopped)

    def _request(self, file: HubFile, start: int, end: int) -> Iterator[bytes]:
        headers = {**_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        with _open(hf_hub_url(self.id, file.name, revision=self.revision), headers) as (response, chunks):
            if response.status_code == 416:
                raise self._changed(file, "it is shorter than the hub's list of files says")
            hf_raise_for_status(response)
            self._check(file, response, start)
            for chunk in chunks:
                chunk = chunk[: end - start]
                start += len(chunk)
                yield chunk
                if start >= end:
                    return

    def _check(self, file: HubFile, response: Any, start: int) -> None:
        """Raise HubError where a response is not of the pinned revision, of another size, or of another range."""
        for each in (*response.history, response):
            commit, linked = each.headers.get("X-Repo-Commit"), each.headers.get("X-Linked-Size")
            if commit and commit != self.revision:
                raise self._changed(file, f"revision {commit[:12]} came instead")
            if linked and int(linked) != file.size:
                raise self._changed(file, f"it has {int(linked):,} bytes, and the hub's list says {file.size:,}")
        if response.status_code == 206:
            range_ = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if range_ is None or int(range_[1]) != start:
                raise HubError(
                    f"{_host()} answered a request for a part of {file.name} with another part. Try a mirror"
                )
            size = file.size if range_[2] == "*" else int(range_[2])
        elif start:
            raise HubError(
                f"{_host()} does not send parts of files. Use another mirror (HF_ENDPOINT), or download all of it with "
                f"`hf download {self.id}` and convert its folder"
            )
        else:
            size = int(response.headers.get("Content-Length") or file.size)
        if size != file.size:
            raise self._changed(file, f"it has {size:,} bytes, and the hub's list says {file.size:,}")

    def _changed(self, file: HubFile, reason: str) -> HubError:
        return HubError(
            f"{file.name} of {self.title} is not what the hub said: {reason}. The repository was changed, or a mirror "
            f"({_host()}) is out of step: start again"
        )


def parse_repository(text: str) -> tuple[str, str | None, str | None] | None:
    """Return (owner/name, revision, file) of `owner/name[@revision][/file]`; None for any other text."""
    found = _REPOSITORY.fullmatch(text.strip())
    return (found["id"], found["revision"], found["file"]) if found else None


def check_name(text: str) -> tuple[str, str | None, str | None]:
    """Return what `parse_repository` does. Raises HubError for any other text."""
    found = parse_repository(text)
    if found is None:
        raise HubError(f"{text!r} is neither a file or folder here nor a repository: expected owner/name")
    return found


def open_repository(
    source: str, idle: Callable[[], None] = lambda: None, started: str | None = None, retry: Retry | None = None
) -> Repository:
    """Pin a repository to the commit that `owner/name[@revision][/file]` is at, and list its files.

    `started` is the commit of an unfinished download, which goes before the newest where the hub still has it. Without
    network, what the local cache holds is used. `idle` is called while waiting, and may raise to stop. Raises HubError.
    """
    id, revision, file = check_name(source)
    retry = retry or Retry()
    try:
        info = _model_info(id, revision or started, retry, idle)
    except RevisionNotFoundError:
        if revision is not None or started is None:
            raise HubError(f"{id} has no revision {revision or 'main'} on {_host()}. Check the name") from None
        info = _model_info(id, None, retry, idle)
    except (OfflineModeIsEnabled, ConnectionError) as error:
        return _cached_repository(id, revision or started, file, retry, error)
    files = {}
    for each in info.siblings or ():
        if "/" in each.rfilename or each.size is None:
            continue
        cached = try_to_load_from_cache(id, each.rfilename, revision=info.sha)
        path = Path(cached) if isinstance(cached, str) and Path(cached).stat().st_size == each.size else None
        files[each.rfilename] = HubFile(each.rfilename, each.size, each.lfs.sha256 if each.lfs else None, path)
    if file is not None and file not in files:
        raise HubError(f"{id} has no file {file}: it has {', '.join(sorted(files)[:20])}")
    return Repository(id, str(info.sha), files, file, retry)


def _model_info(id: str, revision: str | None, retry: Retry, idle: Callable[[], None]) -> Any:
    def ask(stopped: threading.Event) -> Iterator[Any]:
        failures = 0
        while not stopped.is_set():
            try:
                yield HfApi().model_info(id, revision=revision, files_metadata=True, timeout=TIMEOUT)
                return
            except (RevisionNotFoundError, OfflineModeIsEnabled):
                raise
            except _NETWORK_ERRORS as error:
                if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
                    raise HubError(
                        f"{_host()} has no repository {id}, or it is private. Check the name; "
                        f"for a private one {_LOGIN}"
                    ) from error
                failures += 1
                _wait(replace(retry, attempts=4), failures, error, id, stopped)

    return next(read_ahead(ask, idle))


def _wait(retry: Retry, failures: int, error: Exception, what: str, stopped: threading.Event) -> None:
    """Wait before another attempt, as long as the hub asks for. Raise HubError where there is no sense in another."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        raise HubError(f"{what} cannot be downloaded: offline mode is on (HF_HUB_OFFLINE)") from error
    if status is not None and status not in _TRANSIENT:
        reason = {401: _LOGIN, 403: "its owner has to permit it"}.get(status)
        if isinstance(error, GatedRepoError):
            reason = f"it asks for permission: accept its terms on its page there, and {_LOGIN}"
        raise HubError(
            f"{_host()} refuses {what} (status {status}): {reason or 'check the name, or try again later'}"
        ) from error
    if failures >= retry.attempts:
        reason = f"status {status}" if status else str(error).strip() or type(error).__name__
        message = (
            f"{what} cannot be downloaded from {_host()}: {reason}, {failures} times in a row. "
            f"Check the connection and start again: it goes on where it stopped"
        )
        raise (HubError if status else UnreachableError)(message) from error
    asked = str(response.headers.get("Retry-After", "")) if response is not None else ""
    seconds = float(asked) if asked.isdigit() else min(retry.longest, retry.first * 2 ** (failures - 1))
    if seconds > LONGEST_WAIT:
        raise HubError(
            f"{_host()} asks to wait {seconds / 60:.0f} minutes (status {status}). Start again then"
        ) from error
    stopped.wait(seconds)


class UnreachableError(HubError, ConnectionError):
    """The hub does not answer at all."""


@contextmanager
def _open(url: str, headers: dict[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Open a response and its chunks, with requests (huggingface_hub before 1.0) or httpx."""
    session: Any = get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as response:
            yield response, response.iter_raw()  # as they come: nothing is lost where the connection is cut
    else:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            yield response, response.iter_content(CHUNK)


def _headers() -> dict[str, str]:
    return build_hf_headers(library_name="mulan-nodes", library_version=VERSION)


def _host() -> str:
    return constants.ENDPOINT.split("//")[-1]


def _read_cached(path: Path, start: int, end: int, stopped: threading.Event) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(start)
        while start < end and not stopped.is_set():
            chunk = file.read(min(CHUNK, end - start))
            if not chunk:
                raise HubError(f"{path} in the cache is cut short. Delete it and start again")
            start += len(chunk)
            yield chunk


def _cached_repository(id: str, revision: str | None, file: str | None, retry: Retry, error: Exception) -> Repository:
    """Return what the local cache holds of a repository. Raise HubError where it does not hold it."""
    try:
        folder = Path(snapshot_download(id, revision=revision, allow_patterns=file, local_files_only=True))
    except LocalEntryNotFoundError:
        offline = f"{id} cannot be downloaded: offline mode is on (HF_HUB_OFFLINE)"
        reason = offline if isinstance(error, OfflineModeIsEnabled) else error
        raise HubError(f"{reason}, and it is not in the cache {constants.HF_HUB_CACHE}") from error
    files = {
        path.name: HubFile(path.name, path.stat().st_size, None, path) for path in folder.iterdir() if path.is_file()
    }
    if file is not None and file not in files:
        raise HubError(f"{file} of {id} is not in the cache {folder}, and there is no network") from error
    return Repository(id, folder.name, files, file, retry)
