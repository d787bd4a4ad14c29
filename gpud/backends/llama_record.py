"""Reads llama.cpp's own record of what it is about to allocate, out of its output. Starts nothing.

The record comes as one line of JSON where the engine logs in JSON, and as a table in text where it does not::

    | memory breakdown [MiB] | total   free    self   model   context   compute    unaccounted |
    |   - CUDA0 (RTX 4090)   | 24111 = 23667 + (5437 =  4685 +     512 +     239) +      -4992 |
    |   - Host               |                  307 =   281 +       0 +      26                |

It is printed for the model, again for the model when a context that was not given has been settled, then for a draft
model, and once more when the engine ends. What counts is what was said before the engine draws its conclusions.
"""

import json
import re
from collections.abc import Iterable, Mapping

from gpud.core.plan import ALL_LAYERS, Plan
from gpud.core.quote import Estimate, Part, Source
from gpud.core.record import Record, Struct, field, replace

MIB = 1 << 20

HOST_NAME = "Host"

LARGEST_MIB = 1 << 30
"""A figure beyond it (1 PiB) is an underflow of somebody's subtraction, not a size."""

MOST_ROWS = 256

_HEAD = re.compile(r"\| memory breakdown \[MiB\]\s*\|")
_ROW = re.compile(r"\|\s+- (?P<name>[^|]+?)\s*\|(?P<cells>[^|]+)\|\s*$")
_CELLS = re.compile(
    r"(?:^|\()\s*\d+\s*=\s*(?P<model>\d{1,15})\s*\+\s*(?P<context>\d{1,15})\s*\+\s*(?P<compute>\d{1,15})\b"
)
_DEVICE = re.compile(r"^\s*\d+\s*=\s*\d+\s*\+\s*\(")
_EXTRA = re.compile(r"getting device memory data for (?:the|an) extra model")
_CONCLUSION = re.compile(
    r"params_fit_impl: +(?:projected|will leave|cannot |- |id=|device and host)|fit_params: "
    r"|llama_model_loader: |load_tensors: "
)
_LOADS = re.compile(r"load_tensors: |while trying to fit params|fit_params: (?:failed|encountered)")
"""The dry run is over, whatever came of it."""

_PROJECTOR = re.compile(r"\[mtmd\] estimated worst-case memory usage of mmproj is (?P<mib>\d+(?:\.\d+)?) MiB")
_PROJECTOR_ON = re.compile(r"\[mtmd\] adding (?P<mib>\d+(?:\.\d+)?) MiB to fit_params_target for device (?P<name>\S+)")


class _Row(Record):
    name: str
    is_gpu: bool
    model: int
    context: int
    compute: int


class _Extras(Struct):
    """What the engine allocates and its record leaves out, in bytes."""

    projector: int = 0
    projector_on: dict[str, int] = field(default_factory=dict)


class RecordReader:
    """Hears every line of one start. ``adapter_bytes`` are the adapters' files, which no record counts;
    ``projector_bytes`` the projector's, of which only a sum is told.
    """

    def __init__(self, plan: Plan, *, adapter_bytes: int = 0, projector_bytes: int = 0) -> None:
        self._plan = plan
        self._adapter_bytes = adapter_bytes
        self._projector_bytes = projector_bytes
        self._main: tuple[_Row, ...] = ()
        self._draft: tuple[_Row, ...] = ()
        self._table: list[_Row] | None = None
        self._hears_draft = False
        self._extras = _Extras()
        self._told = False
        self.missed = False
        """Set when the engine has gone on to load, and told nothing."""

    def line(self, text: str) -> Estimate | None:
        """The record, once: with the line that shows that it is complete."""
        if self._told:
            return None
        said = self._unwrapped(text)
        if said is None:
            return None
        row = _read_row(said)
        if row is not None and self._table is not None:
            if len(self._table) < MOST_ROWS:
                self._table.append(row)
            return None
        self._close_table()
        if _HEAD.search(said):
            self._table = []
        elif _EXTRA.search(said):
            self._hears_draft = True
        elif match := _PROJECTOR.search(said):
            self._extras.projector = _bytes_of(match["mib"])
        elif match := _PROJECTOR_ON.search(said):
            self._extras.projector_on[match["name"]] = _bytes_of(match["mib"])
        elif self._main and _CONCLUSION.search(said):
            self._told = True
            return self.so_far()
        elif _LOADS.search(said):
            self._told = self.missed = True
        return None

    def so_far(self) -> Estimate | None:
        """What was heard until now, for an engine that ended or went silent."""
        self._close_table()
        if not self._main:
            return None
        names = [row.name for row in self._main if row.is_gpu]
        gpus = [Part(name, index) for index, name in enumerate(names)]
        host = Part(HOST_NAME, None)
        for row in (*self._main, *self._draft):
            index = _index_of(row.name, names)
            if index is None:
                host = _with_row(host, row)
            else:
                gpus[index] = _with_row(gpus[index], row)
        parts = self._with_extras([*gpus, host])
        layers = self._plan.layers if self._plan.layers < ALL_LAYERS else 0
        return Estimate("", tuple(parts), Source.PROBE, context=self._plan.context, layers=layers)

    def _with_extras(self, parts: list[Part]) -> list[Part]:
        names = [part.device for part in parts]
        parts = _with_adapters(parts, self._adapter_bytes)
        on = self._extras.projector_on
        if not any(name in names for name in on):
            on = {names[0]: self._extras.projector}
        weights = self._projector_bytes
        for index, part in enumerate(parts):
            size = on.get(part.device, 0)
            mine = min(size, weights)
            weights -= mine
            parts[index] = replace(
                part, weights_bytes=part.weights_bytes + mine, compute_bytes=part.compute_bytes + size - mine
            )
        return parts

    def _unwrapped(self, text: str) -> str | None:
        """What a line of the log says; None for a record in JSON, which is taken in here."""
        message = _message(text)
        if message is None:
            return text
        if message.get("type") == "fit_memory_breakdown":
            # The same was said as a table, in lines of the log before.
            self._table = None
            self._keep(_rows_of(message.get("data")))
            return None
        said = message.get("msg")
        return said.rstrip("\n") if isinstance(said, str) else None

    def _close_table(self) -> None:
        if self._table is not None:
            self._keep(tuple(self._table))
            self._table = None

    def _keep(self, rows: tuple[_Row, ...]) -> None:
        if not rows:
            return
        if self._hears_draft:
            self._draft = rows
        else:
            self._main = rows


def plain(text: str) -> str:
    """A line of the log as it is in text, where it comes as JSON."""
    message = _message(text)
    said = None if message is None else message.get("msg")
    if message is None or not isinstance(said, str):
        return text
    return ("E " if message.get("level") == "error" else "") + said.rstrip("\n")


def _message(text: str) -> Mapping[str, object] | None:
    if not text.startswith("{"):
        return None
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, Mapping) else None


def _with_adapters(parts: list[Part], size: int) -> list[Part]:
    """An adapter's tensors are where those are that they adapt: in proportion to the weights."""
    total = sum(part.weights_bytes for part in parts)
    own = [size * part.weights_bytes // total if total else 0 for part in parts[:-1]]
    own.append(size - sum(own))
    return [replace(part, weights_bytes=part.weights_bytes + more) for part, more in zip(parts, own, strict=True)]


def _rows_of(data: object) -> tuple[_Row, ...]:
    """The rows of a record in JSON; empty for anything else."""
    if not isinstance(data, Mapping) or data.get("unit") != "MiB" or not isinstance(data.get("rows"), list):
        return ()
    rows = [_json_row(row) for row in data["rows"][:MOST_ROWS]]
    return tuple(row for row in rows if row is not None) if None not in rows else ()


def _json_row(row: object) -> _Row | None:
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
        return None
    sizes = [row.get(key) for key in ("model", "context", "compute")]
    numbers = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool)]
    return _row(row["name"], row.get("kind") == "device", numbers) if len(numbers) == len(sizes) else None


def _read_row(text: str) -> _Row | None:
    match = _ROW.search(text)
    cells = _CELLS.search(match["cells"]) if match else None
    if match is None or cells is None:
        return None
    is_gpu = _DEVICE.match(match["cells"]) is not None
    # A device is described behind its name.
    name = match["name"].partition(" (")[0] if is_gpu else match["name"]
    return _row(name, is_gpu, [int(cells[key]) for key in ("model", "context", "compute")])


def _row(name: str, is_gpu: bool, sizes: Iterable[int]) -> _Row | None:
    model, context, compute = sizes
    if not all(0 <= size <= LARGEST_MIB for size in (model, context, compute)):
        return None
    return _Row(name, is_gpu, model, context, compute)


def _index_of(name: str, gpus: list[str]) -> int | None:
    """The GPU whose memory it is: further kinds of buffers of a device carry its name in front."""
    for index, gpu in enumerate(gpus):
        if name == gpu or name.startswith((f"{gpu}_", f"{gpu}-")):
            return index
    return None


def _with_row(part: Part, row: _Row) -> Part:
    return replace(
        part,
        weights_bytes=part.weights_bytes + row.model * MIB,
        kv_bytes=part.kv_bytes + row.context * MIB,
        compute_bytes=part.compute_bytes + row.compute * MIB,
    )


def _bytes_of(mib: str) -> int:
    return round(min(float(mib), LARGEST_MIB) * MIB)
