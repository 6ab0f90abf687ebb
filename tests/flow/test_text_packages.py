"""Pinned files from a package index on this machine: checked, cached, and refused when wrong."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ontogeny.errors import DataError
from ontogeny.packages import PackageFile, configured_indexes, default_cache, fetch, members

DATA = b"a wheel's bytes " * 1000
NAME = "Some_Text-1.0-py3-none-any.whl"
FILE = PackageFile("Some_Text", "1.0", NAME, hashlib.sha256(DATA).hexdigest(), len(DATA))
PAGE = f'<html><body><a href="x">other</a><a href="../../files/{NAME}#sha256=1">{NAME}</a></body>'


class Server(http.server.ThreadingHTTPServer):
    """Serves `pages` by path; `promised` bytes too many make a download look cut off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.promised = 0
        self.login: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.pages.get(self.path)
        login = self.headers.get("Authorization")
        if self.server.login is not None and login != self.server.login:
            self.send_error(401)
        elif body is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + self.server.promised))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An index that pip is configured with, holding one file."""
    with Server() as server:
        server.pages = {"/simple/some-text/": PAGE.encode(), f"/files/{NAME}": DATA}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_CERT"):
            monkeypatch.delenv(name, raising=False)
        yield server
        server.shutdown()
        thread.join()


def fault(file: PackageFile, cache: Path) -> str:
    with pytest.raises(DataError) as caught:
        fetch(file, cache)
    return str(caught.value)


def test_a_file_is_downloaded_once(index: Server, tmp_path: Path) -> None:
    cache = tmp_path / "made" / "here"
    for _ in range(2):
        assert fetch(FILE, cache).read_bytes() == DATA
    assert index.asked == ["/simple/some-text/", f"/files/{NAME}"]
    assert [path.name for path in cache.iterdir()] == [NAME]


def test_an_index_may_answer_in_json(index: Server, tmp_path: Path) -> None:
    entries = [{"filename": "other", "url": "x"}, {"filename": NAME, "url": f"/files/{NAME}"}]
    index.pages["/simple/some-text/"] = json.dumps({"files": entries}).encode()
    assert fetch(FILE, tmp_path).read_bytes() == DATA


def test_a_login_in_the_address_is_sent_and_never_shown(
    index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.login = "Basic " + base64.b64encode(b"me:pass@word").decode()
    address = index.url.replace("http://", "http://me:pass%40word@") + "/simple"
    monkeypatch.setenv("PIP_INDEX_URL", address)
    assert fetch(FILE, tmp_path / "relative").read_bytes() == DATA
    index.pages["/simple/some-text/"] = f'<a href="{index.url}/files/{NAME}">{NAME}</a>'.encode()
    assert fetch(FILE, tmp_path / "absolute").read_bytes() == DATA
    elsewhere = index.url.replace("127.0.0.1", "localhost")
    index.pages["/simple/some-text/"] = f'<a href="{elsewhere}/files/{NAME}">{NAME}</a>'.encode()
    assert "401" in fault(FILE, tmp_path / "elsewhere")  # the login is not for other hosts
    index.login = "Basic other"
    message = fault(FILE, tmp_path / "again")
    assert "401" in message
    assert "pass" not in message


def test_further_indexes_are_asked(
    index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "local" / "some-text"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(f'<a href="{NAME}">{NAME}</a>')
    (folder / NAME).write_bytes(DATA)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index.url}/none {folder.parent.as_uri()}")
    index.pages.clear()
    assert fetch(FILE, tmp_path / "cache").read_bytes() == DATA


def urls() -> list[str]:
    return [index.url for index in configured_indexes()]


def test_pip_says_where_the_index_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    config.write_text("[global]\nindex-url = http://a/simple\nextra-index-url =\n  b\n  c\n")
    assert urls()[:3] == ["http://a/simple", "b", "c"]
    config.write_text("[global]\nindex-url = http://a/simple\n[download]\nindex-url = http://d\n")
    assert urls()[0] == "http://d"
    monkeypatch.setenv("PIP_INDEX_URL", "http://e")
    assert urls()[0] == "http://e"
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (own,) = urls()  # what pip itself would use
    assert own.startswith("https://")
    assert own.endswith("/simple")


def test_another_file_under_the_name_is_refused(index: Server, tmp_path: Path) -> None:
    other = DATA.upper()
    index.pages[f"/files/{NAME}"] = other
    message = fault(FILE, tmp_path)
    assert f"{NAME} of Some_Text 1.0 from {index.url}/files/{NAME}: wrong sha256" in message
    assert f"expected {FILE.sha256}; found {hashlib.sha256(other).hexdigest()}" in message
    assert "try: check pip's index with `pip config list`" in message
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_refused_on_use(index: Server, tmp_path: Path) -> None:
    path = fetch(FILE, tmp_path)
    path.write_bytes(DATA[:-1] + b"!")
    message = fault(FILE, tmp_path)
    assert f"{path}: wrong sha256: the cached file is damaged or was replaced" in message
    assert f"expected {FILE.sha256}; found " in message
    assert f"try: rm '{path}'" in message


def test_an_interrupted_download_leaves_nothing(index: Server, tmp_path: Path) -> None:
    index.pages[f"/files/{NAME}"] = DATA[:5000]
    index.pages["/simple/some-text/"] = PAGE.encode()
    message = fault(FILE, tmp_path)
    assert "the download was interrupted" in message
    assert "expected 16000 bytes; found 5000 bytes; try: run the command again" in message
    assert list(tmp_path.iterdir()) == []


def test_without_network_the_way_out_is_named(
    index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    message = fault(FILE, tmp_path)
    assert f"cannot download {NAME} of Some_Text 1.0" in message
    assert "Connection refused" in message
    assert "try: the same command on a machine with network" in message


def test_an_index_without_the_file(index: Server, tmp_path: Path) -> None:
    index.pages["/simple/some-text/"] = b"<a href='x'>other</a>"
    assert f"found {index.url}/simple: has no such file" in fault(FILE, tmp_path)
    index.pages.clear()
    assert f"found {index.url}/simple: HTTP Error 404" in fault(FILE, tmp_path)


def test_a_cache_that_cannot_be_made(index: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = fault(FILE, tmp_path / "file" / "cache")
    assert "cannot make the folder for downloads" in message
    assert "XDG_CACHE_HOME" in message


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/ontogeny")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "ontogeny"


def test_members_are_read_in_order_and_nothing_is_unpacked(tmp_path: Path) -> None:
    contents = {"p/b.txt": b"two", "p/a.txt": b"one", "../up.txt": b"three", "p/c.py": b"x"}
    wheel, sdist = tmp_path / "p.whl", tmp_path / "p.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    with tarfile.open(sdist, "w:gz") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("p/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    for path in (wheel, sdist):
        found = [(match[1], data) for match, data in members(path, r"(.*)\.txt")]
        assert found == [("../up", b"three"), ("p/a", b"one"), ("p/b", b"two")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.tar.gz", "p.whl"]
