"""Byte ranges of files, wherever they lie: here, on a server, on a hub; whole or in shards.

`open_ranges` takes a path, an `http(s)://` URL or `hf://OWNER/NAME[@REVISION]/PATH` (with
`datasets/` in front of OWNER for a data set). A server must answer range requests (RFC 9110,
section 14): nothing is ever fetched whole instead. HF_ENDPOINT names another hub, HF_TOKEN is sent
to it, and to nobody it redirects to. Not here: what the bytes mean, proxies, files kept for later.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin

from urllib3 import BaseHTTPResponse, PoolManager, Retry
from urllib3.exceptions import HTTPError, ProtocolError

from ontogeny.errors import DataError

Place = str | Path

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # requests for one range, those that are redirected among them
PAUSE = 0.1  # seconds: twice as many before the third attempt, four times before the fourth, ...
NEAR = 4096  # bytes between two ranges that are cheaper to move than another request
LANES = 16  # requests to one server at a time
BUSY = {429, 500, 502, 503, 504}
ANSWERS = {  # problem and what to type next, by status
    200: ("the server ignores ranges and sends the whole", "fetch the file and give its path"),
    **dict.fromkeys((301, 302, 303, 307, 308), ("redirects without end", None)),
    **dict.fromkeys((401, 403), ("not for everybody", "set HF_TOKEN, for a file of a hub")),
    **dict.fromkeys((404, 410), ("no such file", None)),
}
HUB_PLACE = re.compile(r"hf://((?:datasets|spaces)/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


class Ranges:
    """Something with bytes of which any range can be read, by several threads at once.

    `name` is for people, `size` the bytes in all, `moved` those read so far; `lanes` says how many
    reads at a time pay.
    """

    lanes = 1

    def __init__(self, name: str) -> None:
        self.name, self.size, self.moved = name, 0, 0
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on. Raises DataError when they are not all there."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self._error(
                "ends before what is asked of it",
                expected=f"bytes {offset} to {offset + length}",
                found=f"{self.size} bytes",
                fix="fetch the file anew",
            )
        data = self._read(offset, length) if length else b""
        with self._lock:
            self.moved += length
        return data

    def _read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def _error(self, problem: str, **told: Any) -> DataError:
        return DataError(problem, where=self.name, **told)


def open_ranges(place: Place) -> Ranges:
    """Open a local file, a URL or a file of a hub.

    Raises DataError when it is not there or cannot be read in ranges.
    """
    if not is_remote(place):
        return FileRanges(Path(place))
    if not str(place).startswith("hf://"):
        return HttpRanges(str(place), {})
    token = os.environ.get("HF_TOKEN", "").strip()
    return HttpRanges(hub_url(str(place)), {"Authorization": f"Bearer {token}"} if token else {})


def is_remote(place: Place) -> bool:
    """Whether a place is a URL or on a hub."""
    return str(place).startswith(("http://", "https://", "hf://"))


def hub_url(place: str) -> str:
    """The URL of `hf://...`, as `huggingface_hub` resolves it; slashes of a revision are `%2F`."""
    found = HUB_PLACE.fullmatch(place)
    if found is None:
        forms = "hf://OWNER/NAME/PATH, hf://OWNER/NAME@REVISION/PATH or hf://datasets/OWNER/..."
        raise DataError("not a file of a hub", where=place, expected=forms)
    kind, repository, revision, path = found.groups()
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not is_remote(endpoint):
        raise DataError("not a URL", where="HF_ENDPOINT", expected="https://HOST", found=endpoint)
    revision = quote(unquote(revision or "main"), safe="")
    return f"{endpoint}/{kind or ''}{repository}/resolve/{revision}/{quote(path)}"


class FileRanges(Ranges):
    """A local file, open until it is forgotten."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        if not path.is_file():
            raise self._error("no such file")
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:  # at most 2 GB come at once
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                raise self._error("became shorter while it was read")
            data += more
        return data


class HttpRanges(Ranges):
    """A file on a server, read by range requests over connections that are kept.

    Requests go where the last one was redirected to, and from the start again when that address
    has expired, as those of hubs do. `headers` go to the host of `url` alone.
    """

    lanes = LANES

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        super().__init__(url)
        self._target, self._headers = url, headers
        self._pool = PoolManager(maxsize=LANES, timeout=TIMEOUT)
        self.moved = len(self._read(0, 1))

    def _read(self, offset: int, length: int) -> bytes:
        retries = Retry(
            ATTEMPTS - 1, status_forcelist=BUSY, backoff_factor=PAUSE,
            raise_on_redirect=False, respect_retry_after_header=False,
        )  # fmt: skip
        try:
            return self._ask(offset, length, retries)
        except ValueError as error:
            problem = f"not a URL that can be read ({error})"
            raise self._error(problem, expected="http(s)://HOST[:PORT]/PATH") from error
        except HTTPError as error:
            raise self._error(
                f"cannot be reached ({getattr(error, 'reason', error).args[-1]})",
                found=f"no whole answer in {ATTEMPTS} attempts",
                fix="the same command again, once the server answers",
            ) from error

    def _ask(self, offset: int, length: int, retries: Retry) -> bytes:
        """A range, from wherever the server sends us; of other answers no body is read."""
        target, headers = self._target, {"Range": f"bytes={offset}-{offset + length - 1}"}
        if self._pool.connection_from_url(self.name).is_same_host(target):
            headers |= self._headers
        with self._pool.request(
            "GET", target, headers=headers, retries=retries, preload_content=False
        ) as answer:
            if answer.status >= 400 and target != self.name:  # it has expired
                self._target = self.name
                return self._ask(offset, length, retries)
            size = self._size_by(answer, offset, length)
            if self.moved and size != self.size:
                problem = "changed while it was read"
                raise self._error(problem, expected=f"{self.size} bytes", found=f"{size}")
            self.size, length = size, min(length, size)
            for step in (answer.retries or retries).history:
                target = urljoin(target, step.redirect_location or "")
            self._target = target
            try:
                data = answer.read(length, decode_content=False)
                if len(data) == length:
                    return data
                raise ProtocolError(f"broken off after {len(data)} of {length} bytes")
            except HTTPError as error:  # those of bodies are not the pool's
                retries = retries.increment("GET", self.name, error=error)
        retries.sleep()
        return self._ask(offset, length, retries)

    def _size_by(self, answer: BaseHTTPResponse, offset: int, length: int) -> int:
        """The size of the file, by an answer. Raises DataError unless it is the range asked for."""
        status, told = answer.status, answer.headers.get("Content-Range", "none")
        if status == 206:
            expected = f"bytes {offset}-{offset + length - 1}/"
            size = re.fullmatch(expected + "([0-9]{1,18})", told)
            if size is None:
                raise self._error("the server answers another range", expected=expected, found=told)
            return int(size[1])
        if status == 416 and told == "bytes */0":
            return 0  # an empty file has no first byte: the range is refused, or nothing is sent
        if status == 200 and answer.headers.get("Content-Length") == "0":
            return 0
        problem, fix = ANSWERS.get(status, ("the server does not send it", None))
        raise self._error(problem, found=f"{status} for a range", fix=fix)


class Joined(Ranges):
    """Several ranges as one, each beginning where the one in front of it ends."""

    def __init__(self, parts: Sequence[Ranges], name: str) -> None:
        super().__init__(name)
        self._parts, self.lanes = parts, parts[0].lanes
        self._starts = [0, *itertools.accumulate(part.size for part in parts)]
        self.size, self.moved = self._starts[-1], sum(part.moved for part in parts)

    def _read(self, offset: int, length: int) -> bytes:
        read, place = [], bisect.bisect_right(self._starts, offset) - 1
        while length:
            part, within = self._parts[place], offset - self._starts[place]
            read.append(part.read(within, min(length, part.size - within)))
            offset, length, place = offset + len(read[-1]), length - len(read[-1]), place + 1
        return b"".join(read)


def open_joined(places: Sequence[Place], name: str) -> Ranges:
    """Open files as one, several at a time; raises what `open_ranges` does."""
    if len(places) == 1:
        return open_ranges(places[0])
    with ThreadPoolExecutor(LANES) as pool:
        return Joined(list(pool.map(open_ranges, places)), name)


def read_all(ranges: Ranges, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of many spans (offset, length), in their order.

    Spans that touch, or nearly so where every request has a price, are read together.
    """
    near = NEAR if ranges.lanes > 1 else 0
    begins, lengths = list[int](), list[int]()
    for offset, length in sorted(spans):
        if not begins or offset > begins[-1] + lengths[-1] + near:
            begins.append(offset)
            lengths.append(0)
        lengths[-1] = max(lengths[-1], offset + length - begins[-1])
    if ranges.lanes == 1 or len(begins) == 1:
        read = list(map(ranges.read, begins, lengths))
    else:
        with ThreadPoolExecutor(ranges.lanes) as pool:
            read = list(pool.map(ranges.read, begins, lengths))
    answers = []
    for offset, length in spans:
        block = bisect.bisect_right(begins, offset) - 1
        answers.append(read[block][offset - begins[block] : offset - begins[block] + length])
    return answers
