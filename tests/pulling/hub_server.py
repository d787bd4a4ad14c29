"""A stand-in for Hugging Face's hub, as its library and gpud speak to it, which misbehaves as a test says.

with Hub() as hub:
    hub.add("org/repo", "model-q4_k_m.gguf", data)
    hub.faults["model-q4_k_m.gguf"] = [Cut(1000), Cut(2000)]     # one an answer; then it behaves
"""

import hashlib
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "abcd"


@dataclass
class Fault:
    """What is different in one answer. ``after`` bytes of the body it is done."""

    status: int = 0
    """In place of the right one, with nothing of the file."""
    headers: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """Headers that are left out."""
    after: int | None = None
    """The connection ends there."""
    reset: bool = False
    """With ``after``: it ends as when a server dies, and what was on its way may be lost."""
    hold: threading.Event | None = None
    """With ``after``: in place of that, nothing comes until it is set."""
    body: Callable[[bytes], bytes] | None = None
    """What is sent in place of the body."""
    whole: bool = False
    """The range that was asked for is not heeded."""


def cut(after: int) -> Fault:
    return Fault(after=after)


@dataclass(frozen=True)
class Seen:
    """A request as it came; the names of its headers as they are usually written."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Entry:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


class Hub:
    """Listens on a port of this machine while the block lasts. ``elsewhere``: files are redirected to this origin, as
    the real one sends clients to its content network.
    """

    def __init__(self, *, certificate: Path | None = None, elsewhere: str = "") -> None:
        self.repositories: dict[str, dict[str, Entry]] = {}
        self.extra_siblings: list[dict[str, object]] = []
        self.faults: dict[str, list[Fault]] = {}
        self.api_faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.elsewhere = elsewhere
        self.token = ""
        self.commit = COMMIT
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        host = "localhost" if self._scheme == "https" else "127.0.0.1"
        return f"{self._scheme}://{host}:{self._server.server_address[1]}"

    def reset(self) -> None:
        """As it was made: for tests that share one."""
        self.repositories, self.extra_siblings, self.faults = {}, [], {}
        self.api_faults, self.seen, self.token = [], [], ""

    def add(self, repo: str, path: str, data: bytes, *, lfs: bool = True) -> Entry:
        entry = Entry(data, lfs)
        self.repositories.setdefault(repo, {})[path] = entry
        return entry

    def file_url(self, repo: str, path: str) -> str:
        return f"{self.url}/{repo}/resolve/{self.commit}/{path}"

    def asked(self, part: str) -> list[Seen]:
        """The requests for the content of files whose path has this in it."""
        return [seen for seen in self.seen if part in seen.path and seen.method == "GET"]

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for faults in self.faults.values():
            for fault in faults:
                if fault.hold is not None:
                    fault.hold.set()
        self._server.shutdown()
        self._server.end_all()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    hub: Hub

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def end_all(self) -> None:
        """Clients that keep a connection open do not hold the end up."""
        with self._lock:
            for request in self._open:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:  # type: ignore[override]
        """A client that leaves is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        hub = self.server.hub
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        hub.seen.append(Seen(self.command, path, {name.title(): value for name, value in self.headers.items()}))
        if (
            hub.token
            and self.headers.get("Authorization") != f"Bearer {hub.token}"
            and not path.startswith("/content/")
        ):
            self._say(401, {"X-Error-Message": "Invalid credentials"}, b"{}")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self._api(found[1], found[2], found[3], parse_qs(parts.query))
        elif found := re.fullmatch(r"(?:/content)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[3], via_content=path.startswith("/content/"))
        else:
            self._say(404, {"X-Error-Code": "RepoNotFound"}, b"{}")

    def _api(self, repo: str, what: str, revision: str, query: dict[str, list[str]]) -> None:
        hub = self.server.hub
        if hub.api_faults:
            fault = hub.api_faults.pop(0)
            body = fault.body(b"") if fault.body else b"{}"
            self._say(fault.status or 200, fault.headers, body)
            return
        files = hub.repositories.get(repo)
        if files is None:
            self._say(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
        elif revision not in ("main", hub.commit):
            self._say(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        elif what == "revision":
            siblings = [_sibling(path, entry) for path, entry in files.items()] + hub.extra_siblings
            self._json({"id": repo, "sha": hub.commit, "siblings": siblings, "private": False, "tags": []})
        else:
            self._json([_node(path, entry) for path, entry in files.items()])

    def _json(self, value: object) -> None:
        self._say(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _file(self, repo: str, path: str, *, via_content: bool) -> None:
        hub = self.server.hub
        entry = hub.repositories.get(repo, {}).get(path)
        if entry is None:
            self._say(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return
        linked = {"X-Repo-Commit": hub.commit, "ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
        if entry.lfs:
            linked |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(len(entry.data))}
        if hub.elsewhere and not via_content:
            place = f"{hub.elsewhere}/content{self.path}?signature=s3cr3t"
            self._say(302, {**linked, "Location": place}, b"")
            return
        if self.command == "HEAD":
            self._say(200, {**linked, "Content-Length": str(len(entry.data))}, b"")
            return
        faults = hub.faults.get(path, [])
        self._content(entry, linked, faults.pop(0) if faults else Fault())

    def _content(self, entry: Entry, headers: dict[str, str], fault: Fault) -> None:
        if fault.status:
            self._say(fault.status, fault.headers, b"no")
            return
        first, status, body = 0, 200, entry.data
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if wanted and not fault.whole and condition in (None, headers["ETag"]):
            first = int(wanted[1])
            if first >= len(body):
                self._say(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
                return
            end = int(wanted[2]) + 1 if wanted[2] else len(body)
            body, status = body[first:end], 206
            headers = {**headers, "Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(entry.data)}"}
        headers = {**headers, "Content-Length": str(len(body)), **fault.headers}
        if fault.body is not None:
            body = fault.body(body)
        self._start(status, {name: value for name, value in headers.items() if name not in fault.without})
        if fault.after is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: fault.after])
        self.wfile.flush()
        if fault.hold is not None:
            fault.hold.wait(30)
            with suppress(OSError):
                self.wfile.write(body[fault.after :])
            return
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _say(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._start(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        # Nobody keeps a connection, and with it a thread here, beyond its test.
        self.send_header("Connection", "close")
        self.end_headers()


def _sibling(path: str, entry: Entry) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": path, "size": len(entry.data), "blobId": entry.oid}
    if entry.lfs:
        sibling["lfs"] = {"size": len(entry.data), "sha256": entry.sha256, "pointerSize": 134}
    return sibling


def _node(path: str, entry: Entry) -> dict[str, object]:
    node: dict[str, object] = {"type": "file", "path": path, "size": len(entry.data), "oid": entry.oid}
    if entry.lfs:
        node["lfs"] = {"size": len(entry.data), "oid": entry.sha256, "pointerSize": 134}
    return node
