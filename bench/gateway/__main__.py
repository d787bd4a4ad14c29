"""``.venv/bin/python -m bench.gateway [--peer-binary PATH] [--long] [--only PART] [--json]``: one run, one table, about
90 s.

Between clients and an upstream that answers at once: directly, through gpud (the whole daemon), and through llama-swap
where its binary is given. nginx and wrk are used where they are installed. The machine should have nothing else to do.
"""

import argparse
import json
import platform
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psutil

from bench.gateway.arms import Arm, Attached, Gpud, Models, Peer
from bench.gateway.ends import Clients, Source, built, question, upstream
from bench.gateway.measures import DIRECT, LONG, SHORT, Extent, Row, idle, loads, requests, streams
from bench.manager import Bus, clear, workplace

PARTS = ("requests", "streams", "loads")


def measured(bus: Bus, root: Path, peer: Path | None, extent: Extent, parts: Sequence[str]) -> Iterator[Row]:
    def make(models: Models) -> Sequence[Arm]:
        arms: list[Arm] = [Gpud(bus, models)]
        if peer is not None:
            arms.append(Peer(peer, models))
        return arms

    program, engine = built(root)
    clients = Clients(program, shutil.which("wrk") or "", root)
    if "requests" in parts or "streams" in parts:
        source, answers = Source(program), upstream(program, root)
        _say(f"upstream of requests: {answers.name}; client of requests: {clients.name}")
        for name, used in (("nginx", answers.name), ("wrk", clients.name)):
            if used != name:
                _say(f"{name} is not installed: {used} takes its place")
        if peer is None:
            _say("no --peer-binary was given: llama-swap is left out")
        arms = make({"bench": Attached(answers.port), "stream": Attached(source.port)})
        try:
            yield from idle(arms)
            for part, model in (("requests", "bench"), ("streams", "stream")):
                if part not in parts:
                    continue
                for arm in arms:
                    question(arm.port, model)
                if part == "requests":
                    yield from requests(arms, answers, clients, extent)
                else:
                    yield from streams(arms, source, clients, extent)
        finally:
            for arm in arms:
                arm.close()
            source.close()
            answers.close()
    if "loads" in parts:
        yield from loads(make, engine, root, extent)


def _say(text: str) -> None:
    """Beside the figures, so that those alone are on standard output."""
    print(f"# {text}", file=sys.stderr, flush=True)


def show(row: Row, peer: str) -> None:
    cells = []
    for arm in (DIRECT, "gpud", peer):
        value = row.figures.get(arm)
        cells.append(" " * 12 if value is None else f"{value:12,.{row.places}f}")
    ours, theirs = row.figures.get("gpud"), row.figures.get(peer)
    ratio = f"{ours / theirs:8.2f}" if ours is not None and theirs is not None and theirs > 0 else " " * 8
    print(f"{row.what:56}{''.join(cells)}{ratio}  {row.unit:4} {row.bar}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.gateway", description=__doc__)
    parser.add_argument("--peer-binary", type=Path, help="a llama-swap that was built elsewhere")
    parser.add_argument("--long", action="store_true", help="more and longer repeats: about 10 minutes")
    parser.add_argument("--only", action="append", choices=PARTS, help="may be given more than once")
    parser.add_argument("--json", action="store_true", help="the figures alone, as JSON")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: parser.exit(1, "was told to end\n"))
    if given.peer_binary is not None and not given.peer_binary.is_file():
        parser.error(f"there is no {given.peer_binary}")
    root = workplace()
    rows = []
    load = ", ".join(f"{each:.1f}" for each in psutil.getloadavg())
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    _say(f"{when}, {psutil.cpu_count()} processors, load {load}, Python {platform.python_version()}")
    try:
        with Bus(root) as bus:
            extent = LONG if given.long else SHORT
            for number, row in enumerate(measured(bus, root, given.peer_binary, extent, given.only or PARTS)):
                rows.append(row)
                if not given.json:
                    if not number:
                        print(f"{'':56}{DIRECT:>12}{'gpud':>12}{Peer.name:>12}{'ratio':>8}  {'':4} bar")
                    show(row, Peer.name)
    finally:
        clear(root)
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
