"""Makes the pictures of a terminal in ``docs/images``: ``.venv/bin/python tests/terminal_pictures.py``.

What is shown is what gpud and gpudctl said in this run, with a stand-in for the GPU and for the engines.
"""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from daemon.harness import PYTHON, TOP, Daemon, Place, place_at, settle
from dbus.private_bus import session_bus
from fake_nvml.gpu import GIB, MIB, FakeGpus
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

IMAGES = TOP / "docs" / "images"
WIDTH, HEIGHT = 118, 24

PORT = 8080
"""Where gpudctl looks when nobody tells it: it has to be free."""

MODELS = {"qwen3-8b": 5600 * MIB, "gemma-3-1b": 1300 * MIB, "phi-4-mini": 3200 * MIB}

THEME = TerminalTheme(
    (28, 28, 32),
    (220, 220, 216),
    [
        *((60, 60, 64), (224, 92, 84), (120, 190, 112), (222, 178, 88)),
        *((104, 152, 220), (190, 130, 200), (96, 188, 190), (220, 220, 216)),
    ],
)

ENGINE = '''
"""Answers with 38 pieces a second, until nobody listens."""
import http.server, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close"); self.end_headers()
        for number in range(3000):
            self.wfile.write(b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\\n\\n'); self.wfile.flush()
            time.sleep(1 / 38)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
'''


class Terminal:
    """Runs commands as somebody at a terminal sees them."""

    def __init__(self, place: Place) -> None:
        self._environment = {
            "PATH": f"{TOP}/.venv/bin:/usr/bin:/bin",
            "DBUS_SYSTEM_BUS_ADDRESS": place.address,
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "HOME": str(place.root),
        }

    def typed(self, line: str) -> str:
        """A line at a prompt, and what came of it."""
        return f"\x1b[32m$\x1b[0m {line}\n" + self.shown(line)

    def shown(self, line: str, *, for_s: float | None = None) -> str:
        """``for_s``: then q is pressed, and only the last screen counts."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        with subprocess.Popen(
            ["bash", "-c", line], stdin=slave, stdout=slave, stderr=slave, env=self._environment, start_new_session=True
        ):
            os.close(slave)
            if for_s is not None:
                threading.Timer(for_s, lambda: os.write(master, b"q")).start()
            text = b""
            with contextlib.suppress(OSError):
                while piece := os.read(master, 65536):
                    text += piece
        os.close(master)
        words = text.decode().replace("\r\n", "\n")
        if for_s is not None:
            words = re.split(r"\x1b\[\?1049l", words)[0]
            words = re.split(r"\x1b\[H|\x1b\[2J", words)[-1]
        return _last_state(words).rstrip("\n ") + "\n"


def _last_state(words: str) -> str:
    """What stands there in the end, where a line was taken back to be written anew."""
    lines: list[str] = [""]
    for piece in re.split(r"(\n|\r?\x1b\[2K|\x1b\[1A|\x1b\[\?25[lh])", words):
        if piece == "\n":
            lines.append("")
        elif piece.endswith("\x1b[2K"):
            lines[-1] = ""
        elif piece == "\x1b[1A":
            lines.pop()
        elif not piece.startswith("\x1b[?25"):
            lines[-1] += piece
    return "\n".join(lines)


def picture(name: str, title: str, text: str) -> None:
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(text.rstrip("\n")), overflow="fold")
    drawn = console.export_svg(title=title, theme=THEME, unique_id=name)
    # The font is the reader's own: a picture that asks another machine for one is not shown everywhere.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL).replace("Fira Code, ", "")
    drawn = re.sub(r"<!-- .*? -->\s*", "", drawn)
    (IMAGES / f"{name}.svg").write_text(drawn)
    print(IMAGES / f"{name}.svg")


@contextlib.contextmanager
def streams(*models: str) -> Iterator[None]:
    """Somebody who listens to an answer of each."""
    opened = []
    for model in models:
        body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/v1/chat/completions",
            body.encode(),
            {"Content-Type": "application/json", "User-Agent": "editor"},
        )
        opened.append(urllib.request.urlopen(request))
    try:
        yield
    finally:
        for one in opened:
            one.close()


def configure(place: Place, gpus: FakeGpus) -> None:
    gpus.change(0, name="NVIDIA GeForce RTX 4070 Laptop GPU")
    place.environment |= gpus.environment()
    program = place.root / "engine.py"
    program.write_text(ENGINE)
    models = {}
    for name, size_bytes in MODELS.items():
        mark = f"--name={place.root.name}-{name}"
        gpus.rule(mark, size_bytes)
        models[name] = {
            "engine": "custom",
            "command": [PYTHON, "-E", "-s", str(program), "${port}", mark],
            "health": "/",
            "size": f"{size_bytes // MIB}MiB",
        }
    doors = {"front": {"port": PORT}, "management": {"enable": False}, "ollama": {"enable": False}}
    place.configure(models, http=doors)


def loaded(daemon: Daemon, *models: str) -> None:
    for model in models:
        daemon.loaded(model)
        settle(lambda name=model: daemon.model(name)["VramBytes"] == MODELS[name], f"{model} is measured")


def make(place: Place, gpus: FakeGpus) -> None:
    configure(place, gpus)
    daemon = place.start()
    terminal = Terminal(place)
    gpus.set_foreign(420 * MIB, name="gnome-shell")
    loaded(daemon, "qwen3-8b", "gemma-3-1b")
    picture(
        "terminal",
        "gpudctl",
        terminal.typed("gpudctl status")
        + "\n"
        + terminal.typed("gpudctl load phi-4-mini")
        + "\n"
        + terminal.typed("gpudctl explain qwen3-8b"),
    )
    loaded(daemon, "qwen3-8b", "gemma-3-1b")
    with streams("qwen3-8b", "gemma-3-1b", "qwen3-8b"):
        time.sleep(3)  # Somebody watches for so long: the rates are of the last seconds.
        picture("top", "gpudctl top", terminal.shown("gpudctl top", for_s=4))
    daemon.unload(force=True)
    daemon.stop()


def main() -> int:
    with session_bus() as bus, place_at(bus.address) as place, FakeGpus(Path(place.root) / "gpus", 8 * GIB) as gpus:
        make(place, gpus)
    return 0


if __name__ == "__main__":
    sys.exit(main())
