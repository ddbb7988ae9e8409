"""What a proxy in front of a server wants to see in every request; kept out of logs, journals and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Headers = dict[str, str]


class HeaderError(ValueError):
    """A header, or a file of headers, that cannot be used. Its message never has the value of one."""


def read_headers(file: Path | None, texts: Sequence[str], urls: Sequence[str]) -> dict[str, Headers]:
    """Return the headers of each server.

    A file has a header per line, `Name: value`, for all servers; behind a line `[http://host:8188]` those of that
    server alone. texts: `Name: value`, for all. Raises HeaderError.
    """
    found: dict[str, Headers] = {url: {} for url in urls}
    for text in texts:
        _add(found, urls, text, "--header")
    if file is None:
        return found
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HeaderError(f"--header-file {file} cannot be read: {error.__class__.__name__}") from None
    of: Sequence[str] = urls
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            url = line[1:-1].strip().rstrip("/")
            if url not in found:
                raise HeaderError(f"{file}, line {number}: {url} is not among the servers: {', '.join(urls)}")
            of = [url]
        elif line and not line.startswith("#"):
            _add(found, of, line, f"{file}, line {number}")
    return found


def _add(found: Mapping[str, Headers], urls: Sequence[str], text: str, where: str) -> None:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not value.strip() or any(ord(character) < 32 for character in text):
        raise HeaderError(f"{where}: write Name: value, such as Authorization: Bearer ...")
    for url in urls:
        found[url][name.strip()] = value.strip()


def server_name(url: str) -> str:
    """Return a server's address without a user and password in it: what logs and journals say."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".rstrip("/")
