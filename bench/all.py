"""``.venv/bin/python -m bench.all [--llama-swap PATH] [--ollama PATH] [--only NAME...]``: all benches, into
docs/benchmarks.md.

One after the other, each a process of its own with a bound. One that fails is told on the page, and the next one is
run. What was not run now keeps what the page had of it; what stands there between the lines "by hand" and "end by hand"
is kept as it is. The machine should have nothing else to do, for about half an hour; with --minutes twice that more.
"""

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from bench.manager import TOP
from bench.peers import name_outside_programs
from bench.peers.__main__ import machine, provided, versions

PAGE = TOP / "docs" / "benchmarks.md"
END_S = 15.0
"""How long a bench that took too long may take to end what it started, after it was told to."""

NOT_YET = "Not run yet."
INTRODUCTION = """\
What gpud costs and how long it takes, as measured. `.venv/bin/python -m bench.all` runs every bench once and writes
this page; `--llama-swap` and `--ollama` name the programs to compare with, `--only` and `--skip` choose benches, and
`--minutes` adds the fault campaign and the soak. A figure is a median, with the least and the most where a bench
repeats. Each section says when it was taken and how busy the machine was; that load includes what the bench before it
left. Compare only figures of one section."""

BAR_HAND = "bars"
GPU_HAND = "GPU"
HAND_END = "<!-- end by hand -->"

Given = argparse.Namespace


@dataclass(frozen=True)
class Bench:
    """One of them. ``lacks`` says what is missing here, if anything."""

    name: str
    what: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    bound_s: float = 300.0
    prints_markdown: bool = False
    more: Callable[[Given], tuple[str, ...]] = lambda _: ()
    lacks: Callable[[Given], str] = lambda _: ""

    def words(self, given: Given) -> tuple[str, ...]:
        return (*(self.quick if given.quick else self.full), *self.more(given))

    def bound(self, given: Given) -> float:
        return self.bound_s + (given.minutes or 0) * 60


def others(given: Given) -> tuple[str, ...]:
    words = []
    for option in ("llama-swap", "llama-swap-version", "ollama", "ollama-version"):
        value = getattr(given, option.replace("-", "_"))
        if value is not None:
            words += [f"--{option}", str(value)]
    if given.readme is not None:
        words += ["--write", str(given.readme)]
    return tuple(words)


def peer(given: Given) -> tuple[str, ...]:
    return () if given.llama_swap is None else ("--peer-binary", str(given.llama_swap))


def minutes(given: Given) -> tuple[str, ...]:
    return ("--minutes", f"{given.minutes:g}")


def no_minutes(given: Given) -> str:
    return "" if given.minutes else "it runs as long as it is told to, with `--minutes`"


def no_tree(*names: str) -> Callable[[Given], str]:
    def lacks(_: Given) -> str:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpud"
        if os.geteuid() != 0:
            return "only root can boot the Debian trees that it needs"
        for name in names:
            trees = [path for path in cache.glob(f"{name}-r*") if path.is_dir() and path.suffix != ".part"]
            if not trees:
                return f"there is no Debian tree for it: `tests/provision {name.removesuffix('-13')}` makes it"
        return ""

    return lacks


BENCHES = (
    Bench("core", "The daemon: start, idleness, loads, recovery after `kill -9`, D-Bus.", (), ("--quick",)),
    Bench("gateway", "HTTP between clients and an engine that answers at once.", more=peer, bound_s=900),
    Bench("peers", "gpud beside other model managers.", (), ("--quick",), prints_markdown=True, more=others),
    Bench("relay", "What the HTTP layer alone costs.", (), ("--seconds", "0.3")),
    Bench("catalog", "Finding models on disk.", (), ("--files", "100", "--repeats", "1"), 600),
    Bench("models", "Very many models: daemon and lists.", (), ("--models", "100", "--repeats", "1"), 600),
    Bench("registry", "Remembering models.", (), ("--repeats", "1", "--seconds", "0.5")),
    Bench("gguf", "Reading model files.", (), ("--repeats", "1")),
    Bench("estimate", "Estimates beside llama-server's own record.", prints_markdown=True),
    Bench(
        "simulate",
        "Waiting times under gpud's scheduler and under the rules of others.",
        ("table", "--seeds", "4", "--hours", "6"),
        ("table", "--seeds", "1", "--hours", "0.2"),
        600,
        prints_markdown=True,
    ),
    Bench("shell", "The shell hook.", (), ("--rounds", "2")),
    Bench("suspend", "Unloading before the machine sleeps.", (), ("--rounds", "1")),
    Bench("desktop", "The GNOME widget.", (), ("--seconds", "5"), 900, lacks=no_tree("desktop-13", "desktop-12")),
    Bench("plasma", "The Plasma widget and the tray.", (), ("--seconds", "5"), 900, lacks=no_tree("desktop-13")),
    Bench("faults", "Every fault, under load.", more=minutes, lacks=no_minutes, bound_s=600),
    Bench("soak", "The same load without faults.", more=minutes, lacks=no_minutes),
)
BY_NAME = {bench.name: bench for bench in BENCHES}


@dataclass(frozen=True)
class Outcome:
    """``trouble`` is empty where it did what it should."""

    text: str
    trouble: str
    took_s: float


def run(command: Sequence[str], bound_s: float) -> Outcome:
    """To its end or to the bound; whatever it has started ends with it."""
    begun = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="g-"))
    with (scratch / "out").open("w+") as out, (scratch / "err").open("w+") as err:
        process = subprocess.Popen(
            command,
            cwd=TOP,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            trouble = finish(process, bound_s)
        finally:
            if process.poll() is None:
                end(process)
        out.seek(0)
        err.seek(0)
        said, beside = out.read(), err.read().splitlines()
    shutil.rmtree(scratch, ignore_errors=True)
    notes = [line for line in beside if line.startswith("# ")]
    if trouble:
        notes = beside[-5:]
    text = "\n".join([*notes, said.strip("\n")] if notes and said else notes or [said.strip("\n")])
    return Outcome(text.replace(str(scratch), "/tmp"), trouble, time.monotonic() - begun)


def finish(process: "subprocess.Popen[bytes]", bound_s: float) -> str:
    """What is wrong with how it ended."""
    try:
        status = process.wait(bound_s)
    except subprocess.TimeoutExpired:
        end(process)
        return f"had not ended after {bound_s:.0f} s, and was ended"
    return f"ended with status {status}" if status else ""


def end(process: "subprocess.Popen[bytes]") -> None:
    """It is asked to end first; then all that it started is ended, by PID."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            started += psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def public(text: str, given: Given) -> str:
    """Without what is of this machine alone: folders, and its name."""
    programs = [path for path in (given.llama_swap, given.ollama, given.readme) if path is not None]
    for path in programs:
        text = text.replace(str(path), path.name)
    for folder in (str(TOP) + "/", str(Path.home()) + "/"):
        text = text.replace(folder, "")
    name = socket.gethostname()
    if name and name != "localhost":
        text = re.sub(rf"\b{re.escape(name)}\b", "localhost", text)
    return re.sub(r"(?<![\w.:/])/tmp/[\w./-]*/", "", text)


def section(bench: Bench, body: str) -> str:
    begin, end = f"<!-- bench {bench.name} -->", f"<!-- end of bench {bench.name} -->"
    return "\n\n".join((begin, f"## {bench.name}", bench.what, body, end))


def told(bench: Bench, given: Given, load: float, commit: str, outcome: Outcome) -> str:
    """The body of a section."""
    command = public(" ".join([".venv/bin/python", "-m", f"bench.{bench.name}", *bench.words(given)]), given)
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    lines = [f"`{command}`", "", f"{when}, gpud {commit}, {outcome.took_s:.0f} s; load average before: {load:.1f}."]
    if outcome.trouble:
        lines += ["", f"**It {outcome.trouble}**: a bar is missed, or it could not continue. Its output:"]
    text = public(outcome.text, given).replace("```", "'''") or "(nothing)"
    if bench.prints_markdown and not outcome.trouble:
        notes = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
        table = "\n".join(line for line in text.splitlines() if not line.startswith("# "))
        return "\n".join([*lines, *(["", " ".join(f"{note}." for note in notes)] if notes else []), "", table.strip()])
    return "\n".join([*lines, "", "```text", text, "```"])


def former(page: str, bench: Bench) -> str:
    """What the page has of it so far, without heading and mark."""
    mark = rf"<!-- bench {bench.name} -->\n\n## [^\n]*\n\n[^\n]*\n\n(.*?)\n\n<!-- end of bench {bench.name} -->"
    found = re.search(mark, page, re.S)
    return found[1] if found else NOT_YET


def by_hand(page: str, what: str, default: str) -> str:
    found = re.search(rf"<!-- by hand: {what} -->\n(.*?)\n{HAND_END}", page, re.S)
    return found[1] if found else default


def gpus() -> list[str]:
    """By what drivers show, without asking one."""
    return [path for path in ("/dev/nvidiactl", "/dev/kfd") if Path(path).exists()]


def composed(page: str, bodies: dict[str, str], known: dict[str, str]) -> str:
    """The whole page anew."""
    memory = psutil.virtual_memory().total / 2**30
    rows = {
        "machine": machine(),
        "memory": f"{memory:.1f} GiB",
        "kernel": platform.release().partition("-")[0],
        **known,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    names = ", ".join(f"[{bench.name}](#{bench.name})" for bench in BENCHES)
    sections = "\n\n".join(section(bench, bodies.get(bench.name) or former(page, bench)) for bench in BENCHES)
    no_gpu = (
        "No figure on this page was taken on a GPU: the machine has none. Everything ran on its processor and memory."
    )
    gpu = "The machine has a GPU; the benches above do not use it." if gpus() else no_gpu
    bars = by_hand(page, BAR_HAND, "")
    gpu_figures = by_hand(page, GPU_HAND, "")
    return f"""# Benchmarks

{INTRODUCTION}

{names}

## The machine

From the last run, {datetime.now(UTC):%Y-%m-%d}:

{table}

## Where a bar is missed, and why

<!-- by hand: {BAR_HAND} -->
{bars}
{HAND_END}

{sections}

## On a GPU

{gpu}

<!-- by hand: {GPU_HAND} -->
{gpu_figures}
{HAND_END}
"""


def arguments() -> argparse.ArgumentParser:
    names = [bench.name for bench in BENCHES]
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.all", description=__doc__)
    name_outside_programs(parser)
    parser.add_argument("--readme", type=Path, metavar="FILE", help="have bench.peers write its table there as well")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--skip", nargs="+", choices=names, metavar="NAME", default=[])
    parser.add_argument("--minutes", type=float, help="of the fault campaign and of the soak, which are left out else")
    parser.add_argument("--quick", action="store_true", help="as little as shows that each of them works")
    parser.add_argument("--output", type=Path, default=PAGE, metavar="FILE", help="(default: docs/benchmarks.md)")
    return parser


def main() -> int:
    parser = arguments()
    given = parser.parse_args()
    for path in (given.llama_swap, given.ollama):
        if path is not None and not path.is_file():
            parser.error(f"there is no {path}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("was told to end; the page is as it was after the last bench"))
    page = given.output.read_text() if given.output.exists() else ""
    for option in ("llama_swap", "ollama", "readme"):
        path = getattr(given, option)
        setattr(given, option, path and path.resolve())
    known = versions(given, provided())
    bodies: dict[str, str] = {}
    failed = []
    for bench in BENCHES:
        if bench.name in given.skip or (given.only and bench.name not in given.only):
            continue
        missing = bench.lacks(given)
        if missing:
            print(f"{bench.name}: left out: {missing}", flush=True)
            if former(page, bench) in (NOT_YET, "") or former(page, bench).startswith("Left out"):
                bodies[bench.name] = f"Left out: {missing}."
            continue
        load = os.getloadavg()[0]
        print(f"{bench.name}: runs, at a load of {load:.1f}", flush=True)
        command = [sys.executable, "-m", f"bench.{bench.name}", *bench.words(given)]
        outcome = run(command, bench.bound(given))
        bodies[bench.name] = told(bench, given, load, known["gpud"], outcome)
        if outcome.trouble:
            failed.append(bench.name)
        print(f"{bench.name}: {outcome.trouble or 'done'}, {outcome.took_s:.0f} s", flush=True)
        # After each: what was measured is not lost with the rest.
        given.output.write_text(composed(page, bodies, known))
    given.output.write_text(composed(page, bodies, known))
    print(f"written: {given.output}" + (f"; failed: {', '.join(failed)}" if failed else ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
