"""What a proxy in front of a server wants to see in every request; kept out of logs, journals and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Headers = dict[str, str]


class HeaderError(ValueError):
    """A header, or a file of headers, that cannot be used. Its message never has the value of one."""


class AddressError(ValueError):
    """What should be a server's address is none. Its message has no user and password."""


def read_addresses(texts: Sequence[str], option: str = "--servers") -> list[str]:
    """Return the addresses behind an option, each once, without "/" at the end. Raises AddressError."""
    for text in texts:
        scheme, _, host = text.partition("://")
        if scheme not in ("http", "https") or not host.strip("/"):
            raise AddressError(f"{option} {server_name(text)}: write an address such as http://10.0.0.7:8188.")
    return list(dict.fromkeys(text.rstrip("/") for text in texts))


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
    except UnicodeDecodeError:
        raise HeaderError(f"--header-file {file} is not text in UTF-8. Save it as UTF-8.") from None
    except OSError as error:
        raise HeaderError(
            f"--header-file {file} cannot be read: {error.strerror}. Name a file that you can read."
        ) from None
    of: Sequence[str] = urls
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            url = line[1:-1].strip().rstrip("/")
            if url not in found:
                known = ", ".join(map(server_name, urls))
                raise HeaderError(f"{file}, line {number}: {server_name(url)} is not among the servers: {known}")
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
    scheme, colon, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{colon}{host.rpartition('@')[2]}{slash}{path}".rstrip("/")
