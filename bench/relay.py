"""What the HTTP layer alone costs: a bare relay on it, between an engine and clients in C, against going there
directly.

``.venv/bin/python -m bench.relay [--seconds 2]``: every figure is taken in one run, directly and through the relay; the
relay has a processor of its own where there are enough. Prints a table and, with ``--json``, the figures.
"""

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("relay.c")
CHUNKS = 20_000
PACED = 2_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def relay_forever(port: int, upstream: int) -> None:
    """The relay itself: what a door does at the least."""
    from gpud.core.facts import Endpoint
    from gpud.http.client import Pool
    from gpud.http.crossing import PASSED_BACK, SENT_ON, passed_on
    from gpud.http.listening import TcpAddress
    from gpud.http.message import Reply, Request
    from gpud.http.relay import relay
    from gpud.http.server import Server

    pool = Pool()
    engine = Endpoint(host="127.0.0.1", port=upstream)

    async def pass_on(request: Request, reply: Reply) -> None:
        body = await request.body(1 << 30)
        async with pool.request(
            engine, request.method, request.target, headers=passed_on(request.headers, SENT_ON), body=body or None
        ) as response:
            await reply.begin(response.status, passed_on(response.headers, PASSED_BACK), response.length)
            await relay(response, reply)

    server = Server(pass_on)
    await server.listen(TcpAddress("127.0.0.1", port), door="bench")
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(0, lambda: tell_or_end(done))
    await done.wait()
    loop.remove_reader(0)
    await server.close()
    await pool.close()


def tell_or_end(done: asyncio.Event) -> None:
    """Each line on standard input is answered with what was used so far; its end ends the relay."""
    if not os.read(0, 1):
        done.set()
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "rss_mb": pages * 4096 / 1e6}), flush=True)


class Relay:
    """The relay in a process of its own."""

    def __init__(self, upstream: int) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.relay", "--relay", str(self.port), str(upstream)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def used(self) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("?")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        self.process.communicate()


def measure(program: str, *arguments: object) -> dict[str, float]:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def late(name: str, direct: dict[str, float], through: dict[str, float]) -> list[dict[str, float | str]]:
    return [
        {"what": f"{name}, {key[:3]}", "direct": direct[key], "relay": through[key], "unit": "µs"}
        for key in ("p50_us", "p99_us")
    ]


def run(program: str, seconds: float) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    upstream = free_port()
    engine = subprocess.Popen([program, "serve", str(upstream)], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    engine.stdout.readline()
    relay = Relay(upstream)
    try:
        rows.append({"what": "resident, idle", "relay": relay.used()["rss_mb"], "unit": "MB"})
        for clients, size in ((1, 200), (16, 200), (1, 100_000), (16, 100_000)):
            direct = measure(program, "ask", upstream, clients, seconds, size, size)
            before = relay.used()["cpu_s"]
            through = measure(program, "ask", relay.port, clients, seconds, size, size)
            cpu = (relay.used()["cpu_s"] - before) / (through["requests"] + through["warm_up"])
            name = f"{clients} clients, {size} B"
            rows += late(name, direct, through)
            rate = [each["requests"] / each["seconds"] for each in (direct, through)]
            rows.append({"what": f"{name}, requests", "direct": rate[0], "relay": rate[1], "unit": "/s"})
            rows.append({"what": f"{name}, processor", "relay": cpu * 1e6, "unit": "µs a request"})
        for clients in (1, 32):
            for every in (0, 1000):
                chunks = (CHUNKS if clients == 1 else CHUNKS // 8) if not every else PACED
                direct = measure(program, "listen", upstream, clients, chunks, every)
                before = relay.used()["cpu_s"]
                through = measure(program, "listen", relay.port, clients, chunks, every)
                cpu = (relay.used()["cpu_s"] - before) / through["events"]
                name = f"{clients} streams, " + (f"a chunk every {every / 1000:g} ms" if every else "unpaced")
                rows.append({"what": f"{name}, processor", "relay": cpu * 1e6, "unit": "ms per 1,000 chunks"})
                if every:
                    rows += late(f"{name}, late", direct, through)
        rows.append({"what": "resident, at the end", "relay": relay.used()["rss_mb"], "unit": "MB"})
    finally:
        relay.close()
        engine.terminate()
        engine.communicate()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.relay", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--relay", nargs=2, type=int, metavar=("PORT", "UPSTREAM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.relay:
        asyncio.run(relay_forever(*given.relay))
        return
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory) / "relay")
        subprocess.run(["gcc", "-O2", "-o", program, str(SOURCE)], check=True)
        rows = run(program, given.seconds)
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{'':44}{'direct':>12}{'relay':>12}{'ratio':>8}")
    for row in rows:
        direct, through = row.get("direct"), float(row["relay"])
        ratio = f"{through / float(direct):8.2f}" if direct else " " * 8
        shown = f"{float(direct):12,.1f}" if direct else " " * 12
        print(f"{row['what']:44}{shown}{through:12,.1f}{ratio}  {row['unit']}")


if __name__ == "__main__":
    main()
