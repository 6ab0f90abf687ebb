"""A server on this machine that answers range requests, and can misbehave as real ones do."""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ontogeny.tokens.store import HEADER, MAGIC, VERSION

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Served:
    """What the server does: `faults` maps a path to what is wrong with it.

    "whole": ranges are ignored; a number: this status; "drop": connections of every other request
    are dropped; "short": fewer bytes than promised; "cut": the same, every other time; "shift":
    another range; "grow": another size; "to URL": a redirect. `asked` keeps (path, range,
    authorization) of every request.
    """

    folder: Path
    faults: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    connections: int = 0
    url: str = ""


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Serve a folder from 127.0.0.1 until the block ends."""
    served = Served(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def setup(self) -> None:
            super().setup()
            served.connections += 1

        def log_message(self, *words: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            answer(self, served)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, served: Served) -> None:
    path, asked = request.path, request.headers["Range"]
    served.asked.append((path, asked, request.headers["Authorization"]))
    fault = served.faults.get(path)
    if fault == "cut":
        fault = "short" if len(served.asked) % 2 else None
    if fault == "drop" and len(served.asked) % 2:
        request.close_connection = True
    elif isinstance(fault, int):
        refuse(request, fault)
    elif isinstance(fault, str) and fault.startswith("to "):
        refuse(request, 302, ("Location", fault.removeprefix("to ")))
    elif not (file := served.folder / urllib.parse.unquote(path[1:].partition("?")[0])).is_file():
        refuse(request, 404)
    else:
        send(request, file, fault)


def refuse(request: BaseHTTPRequestHandler, status: int, *headers: tuple[str, str]) -> None:
    request.send_response(status)
    for name, value in (*headers, ("Content-Length", "0")):
        request.send_header(name, value)
    request.end_headers()


def send(request: BaseHTTPRequestHandler, file: Path, fault: object) -> None:
    size = file.stat().st_size
    if fault == "whole":
        request.send_response(200)
        request.send_header("Content-Length", str(size))
        request.end_headers()
        request.wfile.write(file.read_bytes())
        return
    found = RANGE.fullmatch(request.headers["Range"])
    assert found is not None
    first, last = int(found[1]), min(int(found[2]), size - 1)
    if first > last:
        refuse(request, 416, ("Content-Range", f"bytes */{size}"))
        return
    with file.open("rb") as opened:
        opened.seek(first)
        data = opened.read(last - first + 1)
    shown = first + (fault == "shift")
    request.send_response(206)
    request.send_header("Content-Range", f"bytes {shown}-{last}/{size + (fault == 'grow') * first}")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data[: len(data) // 2] if fault == "short" and first else data)
    request.close_connection = fault == "short" and first > 0


ROWS, WIDTH = 146_432_000, 2049  # of Pythia's preshuffled files
PER_UPDATE = 1024


def fake_preshuffled(folder: Path, update: int) -> np.ndarray:
    """A sparse `document.bin/.idx` of 600 GB, real where an update is; its rows."""
    first = PER_UPDATE * update
    tokens = np.random.RandomState(update).randint(1, 50277, (PER_UPDATE, WIDTH)).astype("<u2")
    pointers = np.arange(first, first + PER_UPDATE, dtype="<i8") * (2 * WIDTH)
    sizes = np.full(PER_UPDATE, WIDTH, "<i4")
    after_sizes = HEADER.size + 4 * ROWS
    with (folder / "document.bin").open("wb") as file:
        write_at(file, int(pointers[0]), tokens)
        file.truncate(2 * WIDTH * ROWS)
    with (folder / "document.idx").open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, 8, ROWS, ROWS + 1))
        for place in (0, ROWS - 1):  # the first says how long a row is, the last where it all ends
            write_at(file, HEADER.size + 4 * place, sizes[:1])
            write_at(file, after_sizes + 8 * place, np.array([2 * WIDTH * place], "<i8"))
        write_at(file, HEADER.size + 4 * first, sizes)
        write_at(file, after_sizes + 8 * first, pointers)
        file.truncate(HEADER.size + 20 * ROWS + 8)
    return tokens


def write_at(file: BinaryIO, offset: int, values: np.ndarray) -> None:
    file.seek(offset)
    file.write(values.tobytes())
