"""A gpud with its front door open, before engines that do what a prompt tells them; and doors that are not gpud's."""

import json
import os
import pty
import select
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cli_place import GPUDCTL, PATIENCE_S, Place, RealDaemon, real_daemon
from ports import free_port

ENGINE = """
import http.server, json, os, sys, threading

port, folder = int(sys.argv[1]), sys.argv[2]
lock = threading.Lock()

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock, open(folder + "/asked", "a") as notes:
            notes.write(json.dumps(asked) + "\\n")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        said = asked["messages"][-1]["content"]
        if said == "hold":
            self.say("one ")
            self.say("two ")
            open(folder + "/hold").read()
            self.say("three")
        elif said == "die":
            self.say("one ")
            print("the engine has had enough", flush=True)
            os._exit(3)
        elif said == "cut":
            self.say("one ")
            self.event({"error": {"type": "server_error", "message": "no room in the cache", "code": 500}})
        elif said == "colors":
            self.say("\\x1b[31mred\\x07")
        elif said == "think":
            self.event({"choices": [{"delta": {"reasoning_content": "let me see"}}]})
            self.say("done")
        elif said == "messages":
            self.say(json.dumps(asked["messages"]))
        else:
            for number in range(asked.get("max_tokens") or 3):
                self.say(f"{number} ")
        self.event({"choices": [{"delta": {}, "finish_reason": "length" if asked.get("max_tokens") else "stop"}]})
        usage = {"prompt_tokens": 7, "completion_tokens": asked.get("max_tokens") or 3, "total_tokens": 10}
        self.event({"choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\\n\\n")
        self.chunk(b"")

    def say(self, text):
        self.event({"choices": [{"delta": {"content": text}}]})

    def event(self, value):
        self.chunk(b"data: " + json.dumps(value).encode() + b"\\n\\n")

    def chunk(self, data):
        self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_):
        pass

gate = os.environ.get("GATE")
if gate:
    open(gate).read()  # A FIFO: nothing happens until somebody opens its other end.
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@dataclass
class Front:
    """A daemon with an open door at ``url``, which its configuration tells gpudctl."""

    daemon: RealDaemon
    url: str
    folder: Path

    @property
    def place(self) -> Place:
        return self.daemon.place

    def asked(self) -> list[dict[str, object]]:
        """The bodies that engines were sent."""
        return [json.loads(line) for line in (self.folder / "asked").read_text().splitlines()]

    def let_go(self) -> None:
        """An answer that is held goes on."""
        (self.folder / "hold").open("w").close()


@contextmanager
def front(place: Place, http: str = "") -> Iterator[Front]:
    """tiny answers at once, slow when its gate is opened, big never fits, broken ends at once."""
    folder, port = place.directory, free_port()
    script = folder / "engine.py"
    script.write_text(ENGINE)
    os.mkfifo(folder / "hold")
    (folder / "asked").touch()
    command = f'[{sys.executable}, {script}, "${{port}}", {folder}]'
    config = folder / "config" / "gpud" / "gpud.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(
        f"""
http:
  front: {{port: {port}}}
  management: {{enable: false}}
  ollama: {{enable: false}}
  {http}
stop: {{drain: 1, term: 1, second_term: 1}}
models:
  tiny: {{engine: custom, command: {command}, size: 300MiB, aliases: [small]}}
  other: {{engine: custom, command: {command}, size: 200MiB}}
  slow: {{engine: custom, command: {command}, size: 100MiB, environment: {{GATE: {folder / "gate"}}}}}
  big: {{engine: custom, command: {command}, size: 3000GiB}}
  broken: {{engine: custom, command: [/bin/false, "${{port}}"], size: 1MiB}}
"""
    )
    place.environment["GPUD_BUS"] = "user"
    with real_daemon(place, config) as running:
        yield Front(running, f"http://127.0.0.1:{port}", folder)


@contextmanager
def some_door(answer: bytes) -> Iterator[str]:
    """Something else that listens, and says this to whoever asks. Yields its address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Terminal:
    """gpudctl at a terminal of its own: what it shows, and what is typed."""

    def __init__(self, place: Place, *words: str) -> None:
        self.seen = ""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execvpe(GPUDCTL[0], [*GPUDCTL, *words], place.environment | {"TERM": "xterm", "COLUMNS": "200"})

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, text: str) -> str:
        """What has come since the last call, up to where this is in it."""
        while text not in self.seen:
            ready, _, _ = select.select([self._fd], [], [], PATIENCE_S)
            assert ready, f"{text!r} did not come, but {self.seen!r}"
            self.seen += os.read(self._fd, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def interrupt(self, text: str) -> None:
        """Ctrl-C, until this has come. A signal that arrives in the moment before readline begins to wait for keys is
        seen with the next key: then it takes one more.
        """
        for _ in range(10):
            self.type("\x03")
            while text not in self.seen and select.select([self._fd], [], [], 2.0)[0]:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            if text in self.seen:
                break
        self.until(text)

    def end(self) -> int:
        """Its exit status."""
        with suppress(OSError):
            while select.select([self._fd], [], [], PATIENCE_S)[0]:
                if not (piece := os.read(self._fd, 65536)):
                    break
                self.seen += piece.decode(errors="replace")
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


def settled(true: Callable[[], bool]) -> None:
    """Return when it is so; asked again and again, since nobody tells."""
    until_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until_s, "it did not come to be so"
        time.sleep(0.05)
