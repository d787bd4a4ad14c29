"""Both ends of what is measured: the server that answers at once, the source of chunks, and the clients."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol

from bench.relay import SOURCE, free_port

STARTED_S = 20.0
"""How long anything that is measured may take until it answers."""

CHAT, LARGE = "/v1/chat/completions", "/v1/completions"
SMALL_BYTES, LARGE_BYTES = 200, 100_000

NGINX = """daemon off; master_process off; pid {root}/nginx.pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000000; client_max_body_size 16m; client_body_buffer_size 256k;
  default_type application/json;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3; uwsgi_temp_path {root}/t4;
  scgi_temp_path {root}/t5;
  server {{
    listen 127.0.0.1:{port}; root {root};
    location = /health {{ return 200 "ok"; }}
    location = {chat} {{ return 200 "{small}"; }}
    location = {large} {{ error_page 405 =200 /large; return 405; }}
    location = /large {{ open_file_cache max=10; }}
  }}
}}
"""

WRK = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{body}'
done = function(summary, latency)
  local errors = summary.errors
  local wrong = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\n{{"requests": %d, "seconds": %.6f, "p50_us": %.1f, "p99_us": %.1f, "wrong": %d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99), wrong))
end
"""

Figures = dict[str, float]


def body_of(size: int) -> str:
    """A question of this size to the model "bench"."""
    begin, end = '{"model":"bench","prompt":"', '"}'
    return begin + "x" * (size - len(begin) - len(end)) + end


class Upstream(Protocol):
    """Answers every question at once, with as many bytes as the question has."""

    port: int
    name: str

    def target(self, size: int) -> str: ...

    def close(self) -> None: ...


class Nginx:
    """Fixed answers."""

    name = "nginx"

    def __init__(self, program: str, root: Path) -> None:
        self.port = free_port()
        root.mkdir()
        (root / "large").write_text("a" * LARGE_BYTES)
        text = NGINX.format(root=root, port=self.port, chat=CHAT, large=LARGE, small="a" * SMALL_BYTES)
        (root / "nginx.conf").write_text(text)
        arguments = [program, "-p", str(root), "-e", "stderr", "-c", str(root / "nginx.conf")]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        until_answered(self.port, "/health", self.process)

    def target(self, size: int) -> str:
        return CHAT if size == SMALL_BYTES else LARGE

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


class Source:
    """The server in C: answers of any size, and streams of chunks that hold the time at which they were sent."""

    name = "the bench's own server in C"

    def __init__(self, program: Path) -> None:
        self.port = free_port()
        self.process = subprocess.Popen([program, "serve", str(self.port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def target(self, size: int) -> str:
        return f"{CHAT}?bytes={size}"

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()


class Clients:
    """Asks and listens. ``wrk`` empty: the program in C asks as well, not only listens."""

    def __init__(self, program: Path, wrk: str, root: Path) -> None:
        self._program = program
        self._wrk = wrk
        self._root = root

    @property
    def name(self) -> str:
        return "wrk" if self._wrk else "the bench's own client in C"

    def ask(self, port: int, target: str, clients: int, seconds: int, size: int) -> Figures:
        """Each client asks again as soon as it has its answer."""
        if not self._wrk:
            return self._run("ask", port, clients, seconds, size, size, target)
        script = self._root / f"ask-{size}.lua"
        script.write_text(WRK.format(body=body_of(size)))
        url = f"http://127.0.0.1:{port}{target}"
        done = subprocess.run(
            [self._wrk, "-t1", f"-c{clients}", f"-d{seconds}s", "-s", str(script), url],
            capture_output=True,
            text=True,
            check=True,
        )
        found: Figures = json.loads(done.stdout.splitlines()[-1])
        if found["wrong"] or not found["requests"]:
            raise SystemExit(f"{found['wrong']:.0f} of {found['requests']:.0f} requests to {url} failed")
        return found

    def listen(self, port: int, clients: int, chunks: int, every_us: int) -> Figures:
        """Each client reads one stream of the model "stream" to its end."""
        return self._run("listen", port, clients, chunks, every_us)

    def _run(self, *arguments: object) -> Figures:
        done = subprocess.run([str(self._program), *map(str, arguments)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, arguments))} failed: {done.stderr.strip()}")
        found: Figures = json.loads(done.stdout)
        return found


def built(root: Path) -> tuple[Path, Path]:
    """The programs in C: source and clients, and the engine that takes time to load."""
    for name in ("relay", "engine"):
        subprocess.run(["cc", "-O2", "-o", root / name, SOURCE.with_name(f"{name}.c")], check=True)
    return root / "relay", root / "engine"


def upstream(program: Path, root: Path) -> Upstream:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    return Nginx(found, root / "nginx") if found else Source(program)


def question(port: int, model: str) -> float:
    """One question over a connection of its own; returns when it was answered, on the monotonic clock."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{CHAT}",
        data=json.dumps({"model": model}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=STARTED_S) as answer:
        answer.read(1)
        at = time.monotonic()
        answer.read()
    return at


def until_answered(port: int, path: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + STARTED_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=STARTED_S).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError as problem:
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"what listens at port {port} does not answer: {problem}") from None
            time.sleep(0.02)
