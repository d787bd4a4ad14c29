"""``.venv/bin/python -m bench.registry [--repeats N] [--seconds S]``: what it takes to remember models.

For 1,000 and 5,000 models: the first look, a look that finds nothing new, a look that finds every file touched, the
list of all of them and of one, a start; each also as time of the processor alone, for machines that are busy with
something else. Then how long one use takes to be written, alone and while two programs read all models without end and
another thread fills the event log. The first look stands beside the same rows put into a plain table by one statement,
which no registry can undercut.

Prints one line for each figure: what, the median and the spread, and the bar where there is one.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpud.aside import Aside
from gpud.core.catalogue import Entry, Format, Found, Place, Source
from gpud.core.events import Kind, Logged, Notice
from gpud.core.ports import Line
from gpud.store import FileStore
from gpud.store.model_rows import new_row

TOP = Path(__file__).resolve().parent.parent
COUNTS = (1000, 5000)
MEMORY_BAR_MIB = 5.0

READ = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
print("ready", flush=True)
while True:
    connection.execute("SELECT * FROM models ORDER BY last_used DESC").fetchall()
"""

MEMORY = """
import json, re, sys, tempfile
from pathlib import Path
from bench.registry import entries, looked_aside, opened
from gpud.allocator import give_memory_back

def memory_bytes():
    return 1024 * int(re.search(r"Private_Dirty: +(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])

give_memory_back()
with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as store:
    looked_aside(store, lambda known: entries(10), 1)
    before = memory_bytes()
    looked_aside(store, lambda known: entries(int(sys.argv[1])), 2)
    for number in range(3, 6):
        looked_aside(store, lambda known: known, number)
    print(json.dumps(memory_bytes() - before))
"""


def report(what: str, values: Sequence[float], unit: str, bar: str = "", places: int = 1) -> None:
    low, middle, high = min(values), statistics.median(values), max(values)
    spread = f"{middle:.{places}f} {unit}  (min {low:.{places}f}, max {high:.{places}f}, n={len(values)})"
    print(f"{what:<58} {spread:<52} {f'bar: {bar}' if bar else ''}".rstrip(), flush=True)


def entries(count: int, stamp: str = "") -> list[Entry]:
    """As a look finds them: names, paths and stamps as long as real ones."""
    found = []
    for number in range(count):
        name = f"Model-{number}-Instruct-Q4_K_M"
        place = Place(f"/var/lib/ml-models/gguf/vendor-{number % 50}/{name}.gguf", Source.FOLDER, name)
        mark = f"2049:{number}:4683073184:1764100000123456789:1764100000123456789{stamp}"
        model = Found((place,), Format.GGUF, mark, 4_683_073_184, "", "llama", "Q4_K_M", "8B", 131072, template=True)
        found.append(Entry(number + 1 if stamp else 0, name, model, compatible=("llama-server", "embedded")))
    return found


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[FileStore]:
    store = FileStore(runtime_dir=folder / "run", state_dir=folder / "state")
    try:
        yield store
    finally:
        store.close()


def looked_aside(store: FileStore, find: Callable[[Sequence[Entry]], Sequence[Entry]], at_us: int) -> None:
    """As the daemon does it: a copy of this process finds, and what that comes to is written here."""

    def work(line: Line) -> None:
        borrowed = store.registry.borrowed(line)
        borrowed.take(find(borrowed.entries()), at_us)
        line.send(None)

    def serve(line: Line) -> None:
        assert store.registry.lend(line), "the disk takes nothing"
        line.receive()

    Aside()(work, serve, lambda: False)


def with_copies_ms(work: Callable[[], object]) -> tuple[float, float]:
    """As :func:`taken_ms`, with the time of the processor that copies of this process took."""
    began, worked = time.perf_counter(), sum(os.times()[:4])
    work()
    return (time.perf_counter() - began) * 1000, (sum(os.times()[:4]) - worked) * 1000


def taken_ms(work: Callable[[], object]) -> tuple[float, float]:
    """On the clock, and on the processor."""
    began, worked = time.perf_counter(), time.thread_time()
    work()
    return (time.perf_counter() - began) * 1000, (time.thread_time() - worked) * 1000


def both(what: str, times: Sequence[tuple[float, float]]) -> None:
    report(what, [clock for clock, _ in times], "ms")
    report("  of the processor", [processor for _, processor in times], "ms")


def plain_ms(found: Sequence[Entry], path: Path) -> float:
    rows = [new_row(number, one, 1) for number, one in enumerate(found, 1)]
    marks = ", ".join("?" * len(rows[0]))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"CREATE TABLE model (id INTEGER PRIMARY KEY, {', '.join(rows[0]._fields[1:])})")
    began = time.perf_counter()
    connection.execute("BEGIN")
    connection.executemany(f"INSERT INTO model VALUES ({marks})", rows)
    connection.execute("COMMIT")
    connection.close()
    return (time.perf_counter() - began) * 1000


def looks(count: int, repeats: int) -> None:
    print(f"{count:,} models", flush=True)
    found = entries(count)
    first, plain, starts = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            with opened(Path(folder)) as store:
                store.registry.entries()
                first.append(taken_ms(lambda store=store: store.registry.take(found, 1)))
            with opened(Path(folder)) as store:
                starts.append(taken_ms(lambda store=store: store.registry.entries(["none"])))
            plain.append(plain_ms(found, Path(folder) / "plain.db"))
    both("the first look", first)
    report("the same rows into a plain table by one statement", plain, "ms")
    ratio = statistics.median(clock for clock, _ in first) / statistics.median(plain)
    print(f"  {'ratio of the first look to that':<56} {ratio:.1f}")
    both("start, with its check of the file", starts)
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as store:
        known = store.registry.take(found, 1)
        both("nothing new", [taken_ms(lambda n=n: store.registry.take(known, n)) for n in range(2, repeats + 2)])
        both(
            "nothing new, found by a copy of the process",
            [
                with_copies_ms(lambda n=n: looked_aside(store, lambda known: known, n))
                for n in range(repeats + 2, 2 * repeats + 2)
            ],
        )
        log = Path(folder) / "state" / "registry.db-wal"
        checkpoint(Path(folder))
        store.registry.take(known, 9_999)
        report("  bytes that it writes", [written(log) / 1024], "KiB")
        touched = [entries(count, f":{number}") for number in range(repeats)]
        both("every file touched", [taken_ms(lambda one=one: store.registry.take(one, 10_000)) for one in touched])
        both("list of all", [taken_ms(store.registry.entries) for _ in range(repeats)])
        one = [known[count // 2].name]
        both("one by its name", [taken_ms(lambda: store.registry.entries(one)) for _ in range(repeats)])
    argv = [sys.executable, "-c", MEMORY, str(count)]
    added = [
        json.loads(subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=True).stdout) / 2**20
        for _ in range(3)
    ]
    report("memory that stays after five looks by copies", added, "MiB", f"<= {MEMORY_BAR_MIB:.0f} MiB of the daemon's")


def checkpoint(folder: Path) -> None:
    connection = sqlite3.connect(folder / "state" / "registry.db", isolation_level=None)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def written(log: Path) -> int:
    """Of the log beside the database, without its head."""
    return max(0, log.stat().st_size - 32)


def latencies(store: FileStore, seconds: float) -> list[float]:
    """One use after the other, a hundred a second."""
    taken = []
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        began = time.perf_counter()
        store.registry.used({number % 5000 + 1: (1, number, 2.0)})
        taken.append((time.perf_counter() - began) * 1000)
        time.sleep(0.01)
    return taken


def latency(what: str, taken: Sequence[float]) -> None:
    parts = statistics.quantiles(taken, n=100)
    print(f"{what:<58} p50 {parts[49]:.2f} ms, p99 {parts[98]:.2f} ms, max {max(taken):.2f} ms  (n={len(taken)})")


def uses(seconds: float) -> None:
    print("one use written, of 5,000 models", flush=True)
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as store:
        store.registry.take(entries(5000), 1)
        latency("alone", latencies(store, seconds))
        argv = [sys.executable, "-c", READ, str(Path(folder) / "state" / "registry.db")]
        readers = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(2)]
        stop = threading.Event()
        notice = Notice(Kind.IDLE, "was idle and is unloaded", "model", detail=("a line of output",) * 20)

        def fill() -> None:
            while not stop.wait(0.002):
                store.log([Logged(1, notice)])

        thread = threading.Thread(target=fill)
        try:
            for reader in readers:
                assert reader.stdout is not None
                reader.stdout.readline()
            thread.start()
            latency("with two readers and a thread that fills the event log", latencies(store, seconds))
        finally:
            stop.set()
            if thread.ident is not None:
                thread.join()
            for reader in readers:
                reader.kill()
                reader.communicate()
        print(f"{'what went wrong meanwhile':<58} {store.problem or 'nothing'}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m bench.registry", description="measure what it takes to remember models"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long uses are written, each time")
    options = parser.parse_args()
    for count in COUNTS:
        looks(count, options.repeats)
    uses(options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
