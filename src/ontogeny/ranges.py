"""Byte ranges of files, wherever they lie: here, on a server, on a hub; whole or in shards.

`open_ranges` takes a path, an `http(s)://` URL or `hf://OWNER/NAME[@REVISION]/PATH` (with
`datasets/` in front of OWNER for a data set). A server must answer range requests (RFC 9110,
section 14): nothing is ever fetched whole instead. HF_ENDPOINT names another hub, HF_TOKEN is sent
to it, and to nobody it redirects to. Not here: what the bytes mean, proxies, files kept for later.
"""

from __future__ import annotations

import bisect
import contextlib
import http.client
import itertools
import os
import re
import threading
import time
import urllib.parse
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPMessage
from pathlib import Path

from ontogeny.errors import DataError

Place = str | Path

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4
PAUSE = 0.1  # seconds before the second attempt, twice as many before each further one
MAX_REDIRECTS = 5
NEAR = 4096  # bytes between two ranges that are cheaper to move than another request
LANES = 16  # requests to one server at a time
HUB = "https://huggingface.co"
REDIRECTS = {301, 302, 303, 307, 308}
REFUSALS = {401, 403, 404, 410}  # what an address that has expired answers
BUSY = {429, 500, 502, 503, 504}
ANSWERS = {  # problem and what to type next, by status
    200: ("the server ignores ranges and sends the whole", "fetch the file and give its path"),
    401: ("not for everybody", "set HF_TOKEN, for a file of a hub"),
    403: ("not for everybody", "set HF_TOKEN, for a file of a hub"),
    404: ("no such file", None),
    410: ("no such file", None),
}
SAFE = "/%:@!$&'()*+,;=~"  # in a request
CONNECTIONS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
HUB_PLACE = re.compile(r"hf://((?:datasets|spaces)/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


class Ranges:
    """Something with bytes of which any range can be read, by several threads at once.

    `name` is for people, `size` the bytes in all; `lanes` says how many reads at a time pay.
    """

    name: str
    size: int
    lanes = 1

    def __init__(self) -> None:
        self._moved = 0

    @property
    def moved(self) -> int:
        """Bytes read so far."""
        return self._moved

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on. Raises DataError when they are not all there."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DataError(
                "ends before what is asked of it",
                where=self.name,
                expected=f"bytes {offset} to {offset + length}",
                found=f"{self.size} bytes",
                fix="fetch the file anew",
            )
        return self._read(offset, length) if length else b""

    def _read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError


def open_ranges(place: Place) -> Ranges:
    """Open a local file, a URL or a file of a hub.

    Raises DataError when it is not there or cannot be read in ranges.
    """
    if not is_remote(place):
        return FileRanges(Path(place))
    if not str(place).startswith("hf://"):
        return HttpRanges(str(place))
    token = os.environ.get("HF_TOKEN")
    return HttpRanges(hub_url(str(place)), {"Authorization": f"Bearer {token}"} if token else {})


def is_remote(place: Place) -> bool:
    """Whether a place is a URL or on a hub."""
    return str(place).startswith(("http://", "https://", "hf://"))


def hub_url(place: str) -> str:
    """The URL of `hf://...`, as `huggingface_hub` resolves it; slashes of a revision are `%2F`."""
    found = HUB_PLACE.fullmatch(place)
    if found is None:
        raise DataError(
            "not a file of a hub",
            where=place,
            expected="hf://OWNER/NAME/PATH, hf://OWNER/NAME@REVISION/PATH or hf://datasets/OWNER/...",
        )
    kind, repository, revision, path = found.groups()
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    revision = urllib.parse.quote(urllib.parse.unquote(revision or "main"), safe="")
    return f"{endpoint}/{kind or ''}{repository}/resolve/{revision}/{urllib.parse.quote(path)}"


class FileRanges(Ranges):
    """A local file, open until it is forgotten."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise DataError("no such file", where=path)
        self.name = str(path)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def _read(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                raise DataError("became shorter while it was read", where=self.name)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
            self._moved += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class HttpRanges(Ranges):
    """A file on a server, read by range requests over connections that are kept.

    Requests go where the last one was redirected to, and from the start again when that address
    has expired, as those of hubs do.
    """

    lanes = LANES

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.name = self._target = url
        self._headers = dict(headers or {})
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)
        self.size = self._fetch(0, 1)[1]

    def _read(self, offset: int, length: int) -> bytes:
        body, size = self._fetch(offset, length)
        if size != self.size:
            raise DataError(
                "changed while it was read",
                where=self.name,
                expected=f"{self.size} bytes",
                found=f"{size}",
            )
        return body

    def _fetch(self, offset: int, length: int) -> tuple[bytes, int]:
        """The bytes and the size of the file. Servers that drop us or are busy are asked again."""
        for attempt in range(ATTEMPTS):
            try:
                return self._follow(offset, length)
            except (OSError, http.client.HTTPException) as error:
                last = f"{type(error).__name__}: {error}"
                time.sleep(PAUSE * 2**attempt)
            except ValueError as error:
                raise DataError(
                    f"not a URL that can be read ({error})",
                    where=self.name,
                    expected="http(s)://HOST[:PORT]/PATH",
                ) from error
        raise DataError(
            f"cannot be reached ({last})",
            where=self.name,
            found=f"no whole answer in {ATTEMPTS} attempts",
            fix="the same command again, once the server answers",
        )

    def _follow(self, offset: int, length: int) -> tuple[bytes, int]:
        """One answer, from wherever the server sends us."""
        target = known = self._target
        for _ in range(MAX_REDIRECTS):
            status, headers, body = self._ask(target, offset, length)
            if status in REDIRECTS and headers["Location"]:
                target = urllib.parse.urljoin(target, headers["Location"])
            elif status in REFUSALS and target == known != self.name:
                target = self.name
            else:
                size = self._size(status, headers)
                self._target = target
                return body, size
        raise DataError("redirects without end", where=self.name, found=target)

    def _ask(self, url: str, offset: int, length: int) -> tuple[int, HTTPMessage, bytes]:
        """Status, headers and body of one request; no body but that of the range is read."""
        origin, path = _split(url)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        if origin == _split(self.name)[0]:
            headers |= self._headers
        connection, keep = self._connect(origin), False
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status != http.client.PARTIAL_CONTENT:
                return answer.status, answer.headers, b""
            expected = f"bytes {offset}-{offset + length - 1}/"
            found = answer.headers["Content-Range"] or "none"
            if not found.startswith(expected) or not found.removeprefix(expected).isdecimal():
                problem = "the server answers another range"
                raise DataError(problem, where=self.name, expected=expected, found=found)
            body = answer.read(length)
            if len(body) < length:
                raise http.client.IncompleteRead(body, length - len(body))
            keep = answer.isclosed()  # nothing is left of it
        finally:
            if not keep:
                connection.close()
        with self._lock:
            self._moved += len(body)
            self._idle[origin].append(connection)
        return answer.status, answer.headers, body

    def _connect(self, origin: str) -> http.client.HTTPConnection:
        with self._lock, contextlib.suppress(IndexError):
            return self._idle.setdefault(origin, []).pop()
        scheme, _, host = origin.partition("://")
        return CONNECTIONS[scheme](host, timeout=TIMEOUT)

    def _size(self, status: int, headers: HTTPMessage) -> int:
        """The size of the file, from an answer that is no redirect."""
        if status == http.client.PARTIAL_CONTENT:
            return int(headers["Content-Range"].rpartition("/")[2])
        if (status, headers["Content-Range"]) == (416, "bytes */0"):
            return 0  # an empty file has no first byte
        if (status, headers["Content-Length"]) == (200, "0"):
            return 0
        if status in BUSY:
            raise http.client.HTTPException(f"{status} {http.client.responses.get(status, '')}")
        problem, fix = ANSWERS.get(status, ("the server does not send it", None))
        raise DataError(problem, where=self.name, found=f"{status} for a range", fix=fix)


class Joined(Ranges):
    """Several ranges as one, each beginning where the one in front of it ends."""

    def __init__(self, parts: Sequence[Ranges], name: str) -> None:
        super().__init__()
        self.name = name
        self._parts = parts
        self._ends = list(itertools.accumulate(part.size for part in parts))
        self.size = sum(part.size for part in parts)
        self.lanes = max((part.lanes for part in parts), default=1)

    @property
    def moved(self) -> int:
        return sum(part.moved for part in self._parts)

    def _read(self, offset: int, length: int) -> bytes:
        read = []
        place = bisect.bisect_right(self._ends, offset)
        while length:
            part = self._parts[place]
            within = offset - (self._ends[place] - part.size)
            count = min(length, part.size - within)
            read.append(part.read(within, count))
            offset, length, place = offset + count, length - count, place + 1
        return read[0] if len(read) == 1 else b"".join(read)


def open_joined(places: Sequence[Place], name: str) -> Ranges:
    """Open files as one, those of a server all at a time; raises what `open_ranges` does."""
    if len(places) == 1:
        return open_ranges(places[0])
    with ThreadPoolExecutor(LANES if any(map(is_remote, places)) else 1) as pool:
        return Joined(list(pool.map(open_ranges, places)), name)


def read_all(ranges: Ranges, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of many spans (offset, length), in their order.

    Spans that touch, or nearly so where every request has a price, are read together.
    """
    near = NEAR if ranges.lanes > 1 else 0
    groups: list[list[int]] = []
    end = -1
    for number in sorted(range(len(spans)), key=spans.__getitem__):
        offset, length = spans[number]
        if end < 0 or offset > end + near:
            groups.append([])
        groups[-1].append(number)
        end = max(end, offset + length)
    answers: list[bytes] = [b""] * len(spans)

    def fetch(group: list[int]) -> None:
        first = spans[group[0]][0]
        data = ranges.read(first, max(sum(spans[number]) for number in group) - first)
        for number in group:
            offset, length = spans[number]
            answers[number] = data[offset - first : offset - first + length]

    if ranges.lanes == 1 or len(groups) < 2:
        for group in groups:
            fetch(group)
    else:
        with ThreadPoolExecutor(min(ranges.lanes, len(groups))) as pool:
            list(pool.map(fetch, groups))
    return answers


def _split(url: str) -> tuple[str, str]:
    """Scheme and host of a URL, and what is asked there; what a line cannot hold is escaped."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in CONNECTIONS or not parts.hostname or parts.port == 0:
        raise ValueError(url)
    path = urllib.parse.quote(parts.path or "/", safe=SAFE)
    query = urllib.parse.quote(parts.query, safe=SAFE + "?")
    return f"{parts.scheme}://{parts.netloc}", f"{path}?{query}" if query else path


def _close_all(idle: Mapping[str, list[http.client.HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()
