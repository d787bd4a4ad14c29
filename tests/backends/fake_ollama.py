#!/usr/bin/env -S python3 -S -E
"""A stand-in for the ``ollama`` program: a real server with real runner processes, and switches for misbehaviour.

    fake_ollama.py serve                          honours OLLAMA_HOST and OLLAMA_MODELS
    fake_ollama.py runner --model M --port N      what ``serve`` starts for each model: /slots, /health, /completion

Switches, read from the environment by ``serve``:

FAKE_OLLAMA_RECORD        a file to which each request is appended as a line of JSON
FAKE_OLLAMA_LOAD_S        seconds that a load takes
FAKE_OLLAMA_EMBEDDING     "1": no model can generate, all can embed
FAKE_OLLAMA_LOAD_ERROR    loads fail with status 500 and this text
FAKE_OLLAMA_LOAD_GARBAGE  "1": loads are answered with something that is not JSON
FAKE_OLLAMA_ERROR_IN_200  loads fail with status 200 and this text, as errors inside a stream come
FAKE_OLLAMA_DIE_IN_LOAD   "1": the server prints a last line and exits with status 3 in the middle of a load
FAKE_OLLAMA_KEEP          "1": models are never unloaded, whatever is asked
FAKE_OLLAMA_EXIT          at the start, print this line and exit with status 1
"""

import hashlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSION = "0.33.0"
RUNNER_LOADS_S = 30
MEDIA = "application/vnd.ollama.image."


def switch(name: str) -> str:
    return os.environ.get(f"FAKE_OLLAMA_{name}", "")


def full_name(text: str) -> tuple[str, str, str, str]:
    tag = "latest"
    if text.rfind(":") > text.rfind("/"):
        text, tag = text.rsplit(":", 1)
    given = text.split("/")
    host, namespace, model = (part.lower() for part in ["registry.ollama.ai", "library"][: 3 - len(given)] + given)
    return host, namespace, model, tag.lower()


def short_name(name: tuple[str, str, str, str]) -> str:
    host, namespace, model, tag = name
    shown = f"{model}:{tag}"
    if host != "registry.ollama.ai":
        return f"{host}/{namespace}/{shown}"
    return shown if namespace == "library" else f"{namespace}/{shown}"


def write_model(store: Path, name: str, **layers: bytes) -> str:
    """Put a model into a store as Ollama would: ``model=b"…", projector=b"…"``. Returns the digest of its weights."""
    entries = []
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    for kind, content in (layers or {"model": b"GGUF" + name.encode()}).items():
        digest = hashlib.sha256(content).hexdigest()
        (store / "blobs" / f"sha256-{digest}").write_bytes(content)
        entries.append({"mediaType": MEDIA + kind, "digest": f"sha256:{digest}", "size": len(content)})
    path = store.joinpath("manifests", *full_name(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": entries}))
    return next((entry["digest"][7:] for entry in entries if entry["mediaType"] == MEDIA + "model"), "")


class Loaded:
    """A model with its runner, as Ollama's scheduler keeps it."""

    def __init__(self, name: tuple[str, str, str, str], runner: subprocess.Popen[bytes], port: int) -> None:
        self.name = name
        self.runner = runner
        self.port = port
        self.users = 0
        self.keep_s = 300.0
        self.expires = datetime.now(UTC) + timedelta(seconds=300)
        self.options: dict[str, object] = {}


class Scheduler:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loading = threading.Lock()
        self.loaded: dict[str, Loaded] = {}

    def find(self, name: tuple[str, str, str, str]) -> str | None:
        """The blob of a model in the store."""
        path = Path(os.environ["OLLAMA_MODELS"], "manifests", *name)
        try:
            layers = json.loads(path.read_text())["layers"]
        except OSError:
            return None
        digest = next(layer["digest"] for layer in layers if layer["mediaType"] == MEDIA + "model")
        return str(Path(os.environ["OLLAMA_MODELS"], "blobs", digest.replace(":", "-")))

    def load(self, name, blob, options, still_wanted) -> Loaded | str:
        """The loaded model, or a text that says why not. Ends the runner when nobody wants it any more."""
        with self.loading:
            with self.lock:
                known = self.loaded.get(blob)
            if known is not None:
                if known.runner.poll() is None and (not options or options == known.options):
                    return known
                self.remove(blob)
            if not still_wanted():
                return "request canceled"
            if switch("LOAD_ERROR"):
                return switch("LOAD_ERROR")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            argv = [sys.executable, "-S", "-E", __file__, "runner", "--model", blob, "--port", str(port)]
            runner = subprocess.Popen(argv)
            deadline = time.monotonic() + RUNNER_LOADS_S
            while time.monotonic() < deadline:
                if not still_wanted():
                    runner.kill()
                    runner.wait()
                    return "request canceled"
                if switch("DIE_IN_LOAD"):
                    print("ggml_cuda: cudaMalloc failed: out of memory", file=sys.stderr, flush=True)
                    os._exit(3)
                if runner.poll() is not None:
                    return f"llama-server process has terminated: exit status {runner.returncode}"
                try:
                    ask_runner(port, "GET", "/health")
                    break
                except OSError:
                    time.sleep(0.01)
            made = Loaded(name, runner, port)
            made.options = options
            with self.lock:
                self.loaded[blob] = made
            return made

    def remove(self, blob: str) -> None:
        with self.lock:
            gone = self.loaded.pop(blob, None)
        if gone is not None:
            gone.runner.kill()
            gone.runner.wait()

    def expire(self, blob: str) -> None:
        if switch("KEEP"):
            return
        with self.lock:
            known = self.loaded.get(blob)
            if known is None:
                return
            known.keep_s = 0
            known.expires = datetime.now(UTC)
            idle = known.users == 0
        if idle:
            threading.Thread(target=self.remove, args=(blob,)).start()

    def begin(self, known: Loaded, keep_s: float | None) -> None:
        with self.lock:
            known.users += 1
            if keep_s is not None:
                known.keep_s = keep_s

    def end(self, blob: str, known: Loaded) -> None:
        with self.lock:
            known.users -= 1
            known.expires = datetime.now(UTC) + timedelta(seconds=min(known.keep_s, 9e9))
            over = known.users == 0 and known.keep_s == 0
        if over:
            self.remove(blob)

    def stop(self) -> None:
        for blob in list(self.loaded):
            self.remove(blob)


def ask_runner(port: int, method: str, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        return connection.getresponse().read()
    finally:
        connection.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scheduler: Scheduler

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: object) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def client_is_there(self) -> bool:
        ready, _, _ = select.select([self.connection], [], [], 0)
        try:
            return not ready or self.connection.recv(1, socket.MSG_PEEK) != b""
        except OSError:
            return False

    def record(self, body: object) -> None:
        if switch("RECORD"):
            with open(switch("RECORD"), "a") as file:
                file.write(json.dumps({"method": self.command, "path": self.path, "body": body}) + "\n")

    def do_GET(self) -> None:
        self.record(None)
        if self.path == "/api/version":
            self.answer(200, {"version": VERSION})
        elif self.path == "/api/ps":
            with self.scheduler.lock:
                models = [self.shown(blob, known) for blob, known in self.scheduler.loaded.items()]
            self.answer(200, {"models": models})
        else:
            self.answer(404, b"404 page not found")

    def shown(self, blob: str, known: Loaded) -> dict[str, object]:
        name = short_name(known.name)
        size = os.path.getsize(blob)
        stamp = known.expires.isoformat().replace("+00:00", "123Z")
        return {"name": name, "model": name, "size": size, "size_vram": 0, "digest": "", "expires_at": stamp}

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self.record(body)
        name = full_name(body.get("model", ""))
        blob = self.scheduler.find(name) if body.get("model") else None
        if blob is None:
            self.answer(404, {"error": f"model '{body.get('model', '')}' not found"})
        elif self.path == "/api/generate":
            self.generate(name, blob, body)
        elif self.path == "/api/embed":
            self.use(name, blob, body, {"model": body["model"], "embeddings": []})
        elif self.path == "/api/show":
            self.answer(200, {"modelfile": f"# Modelfile\nFROM {blob}\nTEMPLATE x\n", "capabilities": []})
        else:
            self.answer(404, b"404 page not found")

    def generate(self, name, blob, body) -> None:
        said = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z", "response": "", "done": True}
        if not body.get("prompt") and body.get("keep_alive") == 0:
            self.scheduler.expire(blob)
            self.answer(200, said | {"done_reason": "unload"})
        elif switch("EMBEDDING"):
            self.answer(400, {"error": f'"{body["model"]}" does not support generate'})
        elif switch("LOAD_GARBAGE"):
            self.answer(200, b"<html>")
        elif switch("ERROR_IN_200"):
            self.answer(200, {"error": switch("ERROR_IN_200")})
        else:
            self.use(name, blob, body, said | {"done_reason": "stop" if body.get("prompt") else "load"})

    def use(self, name, blob, body, said) -> None:
        made = self.scheduler.load(name, blob, body.get("options", {}), self.client_is_there)
        if isinstance(made, str):
            self.answer(499 if made == "request canceled" else 500, {"error": made})
            return
        keep = body.get("keep_alive")
        self.scheduler.begin(made, None if keep is None else (9e9 if keep < 0 else float(keep)))
        try:
            if body.get("prompt"):
                # The runner works until somebody releases it: a test decides how long an answer takes.
                ask_runner(made.port, "POST", "/completion")
            self.answer(200, said)
        except OSError:
            self.answer(500, {"error": "llama-server process no longer running: EOF"})
        finally:
            self.scheduler.end(blob, made)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False

    def handle_error(self, *_: object) -> None:
        pass


def serve() -> None:
    if switch("EXIT"):
        print(switch("EXIT"), file=sys.stderr, flush=True)
        sys.exit(1)
    host, port = os.environ["OLLAMA_HOST"].rsplit(":", 1)
    scheduler = Scheduler()
    Handler.scheduler = scheduler
    try:
        server = Server((host, int(port)), Handler)
    except OSError:
        print(f"Error: listen tcp {host}:{port}: bind: address already in use", file=sys.stderr, flush=True)
        sys.exit(1)

    def end(*_: object) -> None:
        scheduler.stop()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    print(f'msg="Listening on {host}:{server.server_port} (version {VERSION})"', file=sys.stderr, flush=True)
    server.serve_forever(poll_interval=60)


class RunnerHandler(BaseHTTPRequestHandler):
    working = 0
    release = threading.Condition()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = json.dumps([{"id": 0, "is_processing": type(self).working > 0}] if self.path == "/slots" else {})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        cls = type(self)
        with cls.release:
            if self.path == "/completion":
                cls.working += 1
                cls.release.wait()
                cls.working -= 1
            else:
                cls.release.notify_all()
        self.send_response(200)
        self.end_headers()


def runner() -> None:
    time.sleep(float(switch("LOAD_S") or 0))
    Server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), RunnerHandler).serve_forever(poll_interval=60)


if __name__ == "__main__":
    {"serve": serve, "runner": runner}[sys.argv[1]]()
