"""What gpud costs between a client and an engine that answers at once: the whole daemon, with its doors, its access
rules, its scheduler and its metrics, against going there directly.

``python -m bench.gateway [--seconds 2] [--json]``: every figure is taken in one run, directly and through gpud. The
engine and the clients are the C program of ``bench.relay``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import yaml

from bench.relay import CHUNKS, PACED, SOURCE, free_port, late, measure

STARTED_S = 20.0
"""How long the daemon may take until it answers."""

Row = dict[str, float | str]


class Daemon:
    """gpud in directories of its own, with one model that the engine of the bench serves."""

    def __init__(self, directory: Path, upstream: int) -> None:
        self.port = free_port()
        configuration = {
            "models": {
                "bench": {"engine": "custom", "url": f"http://127.0.0.1:{upstream}", "health": "/health", "size": "1M"}
            },
            "http": {
                "front": {"port": self.port},
                "management": {"enable": False},
                "ollama": {"enable": False},
            },
        }
        path = directory / "gpud.yaml"
        path.write_text(yaml.safe_dump(configuration))
        for name in ("run", "state"):
            (directory / name).mkdir(mode=0o700)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpud", "--user", "--config", str(path)],
            env={
                **os.environ,
                "XDG_RUNTIME_DIR": str(directory / "run"),
                "XDG_STATE_HOME": str(directory / "state"),
                "DBUS_SESSION_BUS_ADDRESS": f"unix:path={directory}/no-bus",
            },
            stdout=subprocess.DEVNULL,
            stderr=(directory / "log").open("w"),
        )
        self._process = psutil.Process(self.process.pid)
        deadline = time.monotonic() + STARTED_S
        while True:
            try:
                self.load()
                return
            except (OSError, urllib.error.URLError) as problem:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise SystemExit(f"gpud does not answer: {problem}\n{(directory / 'log').read_text()}") from None
                time.sleep(0.05)

    def load(self) -> None:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions?bytes=10",
            data=b'{"model":"bench"}',
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=STARTED_S) as answer:
            answer.read()

    def used(self) -> dict[str, float]:
        times = self._process.cpu_times()
        return {"cpu_s": times.user + times.system, "rss_mb": self._process.memory_info().rss / 1e6}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def run(program: str, seconds: float) -> list[Row]:
    rows: list[Row] = []
    upstream = free_port()
    engine = subprocess.Popen([program, "serve", str(upstream)], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    engine.stdout.readline()
    with tempfile.TemporaryDirectory() as directory:
        daemon = Daemon(Path(directory), upstream)
        try:
            rows.append({"what": "resident, one model loaded", "gpud": daemon.used()["rss_mb"], "unit": "MB"})
            for clients, size in ((1, 200), (16, 200), (1, 100_000), (16, 100_000)):
                rows += asked(program, daemon, upstream, clients, size, seconds)
            for clients in (1, 32):
                for every in (0, 1000):
                    rows += streamed(program, daemon, upstream, clients, every)
            rows.append({"what": "resident, at the end", "gpud": daemon.used()["rss_mb"], "unit": "MB"})
        finally:
            daemon.close()
            engine.terminate()
            engine.communicate()
    return rows


def asked(program: str, daemon: Daemon, upstream: int, clients: int, size: int, seconds: float) -> list[Row]:
    direct = measure(program, "ask", upstream, clients, seconds, size, size)
    before = daemon.used()["cpu_s"]
    through = measure(program, "ask", daemon.port, clients, seconds, size, size)
    cpu = (daemon.used()["cpu_s"] - before) / through["requests"]
    name = f"{clients} clients, {size} B"
    rate = [each["requests"] / each["seconds"] for each in (direct, through)]
    return [
        *renamed(late(name, direct, through)),
        {"what": f"{name}, requests", "direct": rate[0], "gpud": rate[1], "unit": "/s"},
        {"what": f"{name}, processor", "gpud": cpu * 1e6, "unit": "µs a request"},
    ]


def streamed(program: str, daemon: Daemon, upstream: int, clients: int, every: int) -> list[Row]:
    chunks = (CHUNKS if clients == 1 else CHUNKS // 8) if not every else PACED
    direct = measure(program, "listen", upstream, clients, chunks, every)
    before = daemon.used()["cpu_s"]
    through = measure(program, "listen", daemon.port, clients, chunks, every, "/upstream/bench")
    cpu = (daemon.used()["cpu_s"] - before) / through["events"]
    name = f"{clients} streams, " + (f"a chunk every {every / 1000:g} ms" if every else "unpaced")
    rows: list[Row] = [{"what": f"{name}, processor", "gpud": cpu * 1e6, "unit": "ms per 1,000 chunks"}]
    if every:
        rows += renamed(late(f"{name}, late", direct, through))
    return rows


def renamed(rows: list[Row]) -> list[Row]:
    return [{("gpud" if key == "relay" else key): value for key, value in row.items()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory) / "relay")
        subprocess.run(["gcc", "-O2", "-o", program, str(SOURCE)], check=True)
        rows = run(program, given.seconds)
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{'':44}{'direct':>12}{'gpud':>12}{'ratio':>8}")
    for row in rows:
        direct, through = row.get("direct"), float(row["gpud"])
        ratio = f"{through / float(direct):8.2f}" if direct else " " * 8
        shown = f"{float(direct):12,.1f}" if direct else " " * 12
        print(f"{row['what']:44}{shown}{through:12,.1f}{ratio}  {row['unit']}")


if __name__ == "__main__":
    main()
