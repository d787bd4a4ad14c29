"""Asks the real llama-server what it would allocate, and ends it before it reads a weight."""

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpud.core.plan import Plan

ARGUMENTS: tuple[tuple[str, Plan], ...] = (
    ("-c 16384", Plan(context=16384)),
    ("-c 16384 -np 2", Plan(context=16384, parallel=2)),
    ("-c 65536 -np 1 -ub 1024", Plan(context=65536, parallel=1, micro_batch=1024)),
    ("-c 8192 -ctk q8_0 -ctv q8_0 -fa on", Plan(context=8192, type_k="q8_0", type_v="q8_0", flash_attention="on")),
    ("-c 4000 -np 3 -kvu --swa-full", Plan(context=4000, parallel=3, unified=True, full_swa=True)),
)
"""What the formula is compared with the engine on."""

_PROJECTOR = re.compile(r"memory usage of mmproj is ([\d.]+) MiB")
_BUFFER = re.compile(r"compute buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Record:
    """Whole MiB, rounded down, summed over the rows of the machine's own memory.

    ``buffers`` is the third of them again, to the hundredth, where the engine was told to say more.
    """

    model: int
    context: int
    compute: int
    buffers: float = 0.0

    @property
    def total(self) -> int:
        return self.model + self.context + self.compute


def dry_records(llama_server: str, arguments: Sequence[str], count: int = 1) -> list[Record]:
    """Start the server, take its first so many records, end it. Raises RuntimeError with its last words."""
    found, said = ask(llama_server, arguments, count)
    return [_record(rows, said) for rows in found]


def dry_devices(llama_server: str, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Record]:
    """The rows of the first record by the names of their devices."""
    ((rows,), _) = ask(llama_server, arguments, 1, environment)
    return {str(row["name"]): _record([row], ()) for row in rows}


def projector_mib(llama_server: str, model: str, projector: str) -> float:
    """What the server says that an encoder takes at its worst."""
    _, said = ask(llama_server, ["-m", model, "-mm", projector, "-c", "4096", "-lv", "4"], 1)
    return float(next(found[1] for found in map(_PROJECTOR.search, said) if found))


Row = dict[str, Any]


def ask(
    llama_server: str, arguments: Sequence[str], count: int, environment: Mapping[str, str] | None = None
) -> tuple[list[list[Row]], list[str]]:
    """The rows of the first so many records, and all that was said until then."""
    argv = [llama_server, "--log-jsonl", "--offline", "--host", "127.0.0.1", "--port", "0", *arguments]
    found: list[list[Row]] = []
    said: list[str] = []
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                said.append(line)
                if '"fit_memory_breakdown"' in line:
                    found.append(json.loads(line)["data"]["rows"])
                    if len(found) == count:
                        break
        finally:
            server.kill()
    if len(found) < count:
        raise RuntimeError(f"{len(found)} of {count} records of {' '.join(argv)}:\n{''.join(said[-20:])}")
    return found, said


def _record(rows: Sequence[Row], said: Sequence[str]) -> Record:
    model, context, compute = (sum(int(row[part]) for row in rows) for part in ("model", "context", "compute"))
    buffers = [float(size) for line in said for size in _BUFFER.findall(line)]
    return Record(model, context, compute, buffers[-1] if buffers else float(compute))
