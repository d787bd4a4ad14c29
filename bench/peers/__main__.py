"""``.venv/bin/python -m bench.peers [--llama-swap PATH] [--ollama PATH] [--write README.md]``: gpud beside what people
use today.

Real engines with two tiny models, of which one may be loaded at a time: llama-server alone, gpud, llama-swap and Ollama
where they are given, and llama-server's own router where the build has it, in one run of about two minutes, the arms in
turn. Prints a table in Markdown: medians, and between which values they lie. "Added" is beyond llama-server alone. The
machine should have nothing else to do. gpud is started as systemd starts it, with a store for its descriptors.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench.manager import TOP, Bus, clear, workplace
from bench.peers import name_outside_programs
from bench.peers.arms import NAMES, Arm, Direct, Gpud, LlamaSwap, Ollama, Router, adopt_orphans, version
from bench.peers.client import Broken
from bench.peers.measures import FULL, MEASURES, QUICK, Extent, Figure
from bench.peers.table import BEGIN, note, table, write
from gpud import __version__

BOUND_S = 240.0
"""Whatever happens, it has ended by then."""


def say(text: str) -> None:
    """Beside the figures, so that those alone are on standard output."""
    print(f"# {text}", file=sys.stderr, flush=True)


def provided() -> Path:
    """The llama-server of the tests."""
    made = subprocess.run([TOP / "tests" / "provision", "llama-server"], capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(f"tests/provision llama-server failed: {made.stderr.strip()}")
    return Path(made.stdout.strip()) / "site" / "bin" / "llama-server"


def make_models(root: Path) -> None:
    (root / "models").mkdir()
    for seed, name in enumerate(NAMES, start=1):
        file = root / "models" / f"{name}.gguf"
        command = [sys.executable, str(TOP / "tests" / "tiny_model.py"), str(file), "--seed", str(seed), "--name", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def made(given: argparse.Namespace, server: Path, bus: Bus, root: Path) -> list[Arm]:
    """The arms of this run, and a word about each that is missing."""
    found: list[Arm] = [Direct(server, root), Gpud(bus, server, root)]
    if given.llama_swap is not None:
        found.append(LlamaSwap(given.llama_swap, server, root))
    else:
        say("no --llama-swap was given: it is left out")
    if given.ollama is not None:
        found.append(Ollama(given.ollama, root))
    else:
        say("no --ollama was given: it is left out")
    if given.without_router:
        say("llama-server's router is left out, as was said")
    elif Router.is_in(server):
        found.append(Router(server, root))
    else:
        say(f"{version(server)} of llama-server has no router (its --help has no --models-dir): it is left out")
    return found


def measured(arms: Sequence[Arm], extent: Extent) -> list[Figure]:
    with contextlib.ExitStack() as ends:
        for arm in arms:
            ends.callback(arm.close)
            arm.start()
        return [figure for measure in MEASURES for figure in measure(arms, extent)]


def versions(given: argparse.Namespace, server: Path) -> dict[str, str]:
    at = ["git", "-C", str(TOP), "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(at, capture_output=True, text=True, check=False).stdout.strip()
    found = {"gpud": commit or __version__, "Python": platform.python_version(), "llama-server": version(server)}
    if given.llama_swap is not None:
        found["llama-swap"] = given.llama_swap_version or version(given.llama_swap)
    if given.ollama is not None:
        found["Ollama"] = given.ollama_version or version(given.ollama)
    return found


def machine() -> str:
    """The processor and how many there are of it."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    count = len(os.sched_getaffinity(0))
    return f"{count} processor{'s' * (count > 1)}, {name}"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.peers", description=__doc__)
    name_outside_programs(parser)
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="(default: the one of the tests)")
    parser.add_argument("--without-router", action="store_true", help="leave llama-server's own router out")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: to see that it works")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, with all repeats")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f'put the table into a document, below "{BEGIN}"')
    return parser


def ended(*_: object) -> None:
    raise SystemExit("was told to end before all was measured")


def main() -> None:
    parser = arguments()
    given = parser.parse_args()
    for path in (given.llama_swap, given.ollama, given.llama_server):
        if path is not None and not path.is_file():
            parser.error(f"there is no {path}")
    if given.write is not None:
        write_is_possible(parser, given.write)
    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(SystemExit(f"has not ended within {BOUND_S:g} s")))
    signal.setitimer(signal.ITIMER_REAL, BOUND_S)
    server = given.llama_server or provided()
    adopt_orphans()
    root = workplace()
    before = os.getloadavg()[0]
    try:
        make_models(root)
        with Bus(root) as bus:
            arms = made(given, server, bus, root)
            figures = measured(arms, QUICK if given.quick else FULL)
    except Broken as problem:
        raise SystemExit(f"nothing can be compared: {problem}") from None
    finally:
        clear(root)
    names = [arm.name for arm in arms]
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    load = (before, os.getloadavg()[0])
    known = versions(given, server)
    text = f"{table(figures, names)}\n\n{note(known, when, machine(), load)}"
    if given.write is not None:
        write(given.write, text)
        say(f"written into {given.write}")
    if given.json:
        told = {"when": when, "machine": machine(), "versions": known, "load": load, "arms": names}
        print(json.dumps({**told, "figures": [asdict(figure) for figure in figures]}))
    else:
        print(text)


def write_is_possible(parser: argparse.ArgumentParser, path: Path) -> None:
    """Said before anything is measured, not after."""
    try:
        text = path.read_text()
    except OSError as problem:
        parser.error(f"cannot read {path}: {problem.strerror}")
    if BEGIN not in text:
        parser.error(f"{path} has no place for the figures: it needs a line {BEGIN}")


if __name__ == "__main__":
    main()
