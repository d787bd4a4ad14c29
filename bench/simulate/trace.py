"""What is simulated: a table of models and a trace of requests, read from CSV or generated from a seed."""

import csv
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30

MODEL_COLUMNS = ("name", "bytes", "load_s")
TRACE_COLUMNS = ("t", "model", "service_s")
CALLER_COLUMN = "caller"


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """What a model holds on the GPU once it is loaded, and how long its load takes."""

    name: str
    bytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Request:
    """Asked at ``t`` (seconds from the beginning), it keeps one slot of its model for ``service_s``."""

    t: float
    model: str
    service_s: float
    caller: str = ""


class BadInput(Exception):
    """A file that cannot be used: its name, the line, the column and the value."""


# Files ---------------------------------------------------------------------------------------------------------------


class _Table:
    """A CSV file with a header, whose cells are converted one by one and blamed by line and column."""

    def __init__(self, path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> None:
        self._path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise BadInput(f"cannot read {path}: byte {error.start} is not UTF-8") from None
        reader = csv.reader(text.splitlines())
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in needed if name not in header]
        if missing:
            found = ", ".join(header) or "nothing"
            expected = ",".join(needed) + "".join(f"[,{name}]" for name in optional)
            raise BadInput(
                f"{path}, line 1: column {', '.join(missing)} is missing; found {found}, expected {expected}"
            )
        self.rows: list[tuple[int, dict[str, str]]] = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise BadInput(f"{path}, line {reader.line_num}: {len(cells)} cells, the header has {len(header)}")
            row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            self.rows.append((reader.line_num, row))
        if not self.rows:
            raise BadInput(f"{path}: there is no line below the header")

    def blame(self, line: int, column: str, value: str, problem: str) -> BadInput:
        return BadInput(f'{self._path}, line {line}, column {column}: "{value}" {problem}')

    def number(self, line: int, row: Mapping[str, str], column: str, least: float, above: bool = False) -> float:
        value = row[column]
        try:
            number = float(value)
        except ValueError:
            raise self.blame(line, column, value, "is not a number") from None
        if not math.isfinite(number):
            raise self.blame(line, column, value, "is not a finite number")
        if number < least or (above and number == least):
            raise self.blame(line, column, value, f"must be {'more than' if above else 'at least'} {least:g}")
        return number


def read_models(path: Path) -> dict[str, SimulatedModel]:
    """The table ``name,bytes,load_s``; bytes may be written as 7e9."""
    table = _Table(path, MODEL_COLUMNS)
    models: dict[str, SimulatedModel] = {}
    for line, row in table.rows:
        name = row["name"]
        if not name:
            raise table.blame(line, "name", name, "is empty")
        if name in models:
            raise table.blame(line, "name", name, "is there twice")
        size_bytes = table.number(line, row, "bytes", 0, above=True)
        if size_bytes != int(size_bytes):
            raise table.blame(line, "bytes", row["bytes"], "is not a whole number of bytes")
        models[name] = SimulatedModel(name, int(size_bytes), table.number(line, row, "load_s", 0))
    return models


def read_trace(path: Path, models: Mapping[str, SimulatedModel]) -> list[Request]:
    """The trace ``t,model,service_s[,caller]``, in any order of lines; returned in the order of time."""
    table = _Table(path, TRACE_COLUMNS, (CALLER_COLUMN,))
    trace = []
    for line, row in table.rows:
        if row["model"] not in models:
            raise table.blame(line, "model", row["model"], "is not in the table of models")
        t = table.number(line, row, "t", 0)
        service_s = table.number(line, row, "service_s", 0)
        trace.append(Request(t, row["model"], service_s, row.get(CALLER_COLUMN, "")))
    trace.sort(key=lambda request: request.t)
    return trace


def write(folder: Path, models: Mapping[str, SimulatedModel], trace: Sequence[Request]) -> None:
    """``models.csv`` and ``trace.csv`` in a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "models.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(MODEL_COLUMNS)
        writer.writerows((model.name, model.bytes, f"{model.load_s:.3f}") for model in models.values())
    with (folder / "trace.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*TRACE_COLUMNS, CALLER_COLUMN))
        writer.writerows((f"{r.t:.3f}", r.model, f"{r.service_s:.3f}", r.caller) for r in trace)


# The generated workload ----------------------------------------------------------------------------------------------

SIZES_GIB = (0.7, 1.0, 1.3, 1.8, 2.4, 3.3, 4.5, 6.1, 8.3, 11.3, 15.4, 21.0)
"""Twelve models as people have them: an embedder, small and middling chat models, one that fills a card by itself."""

LOAD_BASE_S = 1.2
LOAD_GIB_PER_S = 5.0
"""A load costs the start of a process and the reading of its weights."""

SESSIONS_PER_HOUR = 95.0
REQUESTS_PER_SESSION = 10.0
"""Geometric, so at least one: most conversations are short and some go on."""

QUICK_SHARE = 0.4
QUICK_MEDIAN_S = 3.0
SLOW_MEDIAN_S = 150.0
THINK_SIGMA = 1.0
"""Between an answer and the next question, lognormal: some follow at once, in bursts; others when somebody has read
and thought.
"""

SERVICE_MEDIAN_S = 1.0
SERVICE_SIGMA = 0.8

CALLERS = 6


def generate(
    seed: int, hours: float, service: Callable[[random.Random], float] | None = None
) -> tuple[dict[str, SimulatedModel], list[Request]]:
    """Sessions come at random (Poisson) and pick their model by Zipf(1) over a shuffled popularity; within a session
    requests follow each other after the service of the last one and a think time.
    """
    rng = random.Random(seed)
    serve = service or (lambda r: r.lognormvariate(math.log(SERVICE_MEDIAN_S), SERVICE_SIGMA))
    models = {}
    for number, size_gib in enumerate(SIZES_GIB, 1):
        name = f"m{number:02d}-{size_gib:g}g"
        load_s = LOAD_BASE_S + size_gib / LOAD_GIB_PER_S
        models[name] = SimulatedModel(name, int(size_gib * GIB), round(load_s, 3))
    popularity = list(models)
    rng.shuffle(popularity)
    weights = [1 / rank for rank in range(1, len(popularity) + 1)]
    end_s = hours * 3600
    trace = []
    begin_s = rng.expovariate(SESSIONS_PER_HOUR / 3600)
    while begin_s < end_s:
        (model,) = rng.choices(popularity, weights)
        caller = f"user{rng.randrange(CALLERS)}"
        t = begin_s
        while True:
            service_s = serve(rng)
            if t < end_s:
                trace.append(Request(round(t, 3), model, round(service_s, 3), caller))
            if rng.random() < 1 / REQUESTS_PER_SESSION:
                break
            median_s = QUICK_MEDIAN_S if rng.random() < QUICK_SHARE else SLOW_MEDIAN_S
            t += service_s + rng.lognormvariate(math.log(median_s), THINK_SIGMA)
        begin_s += rng.expovariate(SESSIONS_PER_HOUR / 3600)
    trace.sort(key=lambda request: request.t)
    return models, trace
