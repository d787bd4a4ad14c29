"""Which of a model's quantizations fits this machine: what each needs, by the header of one and the sizes of all, and
what gpud may use. Decides what is recommended; downloads nothing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpud.cli.budget import Way, counted
from gpud.cli.output import Output, size, table
from gpud.core.errors import GpudError
from gpud.core.record import Record, replace

if TYPE_CHECKING:
    from gpud.core.quote import Estimate

USUAL_CONTEXT = 16384
"""What a model gets that is found, unless the configuration says something else."""

EXACT = ("F16", "BF16", "F32", "FP16", "FP32")
"""Twice as large as Q8_0 and not better by anything that could be noticed: recommended only where there is nothing
else."""

COMMON = ("Q4_K_M", "Q4_K_S", "UD-Q4_K_XL", "IQ4_XS", "MXFP4", "Q4_0", "Q5_K_M")
"""Where nobody knows how much memory there is, the first of these that is there."""

Choice = dict[str, Any]


class Row(Record):
    """One quantization. ``now`` and ``ever``: whether it fits as things are, and when everything else is unloaded;
    None: nobody knows.
    """

    choice: Choice
    way: Way
    now: bool | None
    ever: bool | None

    @property
    def label(self) -> str:
        return str(self.choice["label"])

    @property
    def size_bytes(self) -> int:
        return sum(file["size_bytes"] for file in self.choice["files"])

    def as_data(self, recommended: "Row | None") -> dict[str, Any]:
        return {
            "quantization": self.label,
            "files": [file["path"] for file in self.choice["files"]],
            "size_bytes": self.size_bytes,
            "need_bytes": self.way.need_bytes,
            "host_bytes": self.way.host_bytes,
            "source": self.way.source,
            "fits_now": self.now,
            "fits_at_most": self.ever,
            "missing_parts": self.choice["missing"],
            "recommended": self is recommended,
        }


def size_of(choice: Choice) -> int:
    return sum(file["size_bytes"] for file in choice["files"])


def rows(
    choices: Sequence[Choice],
    header: tuple[Choice, str] | None,
    context: int,
    gpus: int,
    devices: Sequence[dict[str, Any]],
) -> list[Row]:
    """``header`` is the choice whose header was read, and where it is; ``devices`` are records of ListGpus."""
    measured = _estimated(header[1], context, gpus) if header is not None else None
    found = []
    for choice in choices:
        if measured is not None and header is not None:
            way = counted(_scaled(measured, size_of(choice) / max(1, size_of(header[0]))), None, "")
        else:
            way = _guessed(size_of(choice), context, gpus)
        found.append(Row(choice, way, *_fits(way, devices)))
    return found


def _estimated(path: str, context: int, gpus: int) -> "Estimate | None":
    """What the formula says; None where it does not know the model, or its file is not as it should be."""
    from gpud.cli.estimate import calculate, plan_for, read_files

    try:
        plan = plan_for(path, ("-c", str(context)), min(1, gpus), {})
        files = read_files(plan)
        trained = files.model.values.get(f"{files.model.architecture}.context_length")
        if isinstance(trained, int) and 0 < trained < context:
            plan = replace(plan, context=trained)
        return calculate(files, plan)
    except GpudError:
        return None


def _scaled(estimate: "Estimate", ratio: float) -> "Estimate":
    """Of the same model in another quantization: only the weights differ, and as its file does."""
    parts = tuple(replace(part, weights_bytes=round(part.weights_bytes * ratio)) for part in estimate.parts)
    return replace(estimate, parts=parts)


def _guessed(size_bytes: int, context: int, gpus: int) -> Way:
    from gpud.core.estimate import first_guess

    return Way({"" if gpus else "host": first_guess(size_bytes, context)}, "guess", context)


def _fits(way: Way, devices: Sequence[dict[str, Any]]) -> tuple[bool | None, bool | None]:
    """Now, and at most. A sleeping GPU is not woken to look: it is known what it has, and not what is free."""
    ways = []
    for key in ("Available", "Budget"):
        host = next((gpu.get(key) for gpu in devices if gpu["Uuid"] == "host"), None)
        amounts = [gpu.get(key) for gpu in devices if gpu["Uuid"] != "host"]
        known = [amount for amount in amounts if amount is not None]
        if way.on_host:
            ways.append(None if host is None else way.need_bytes <= host)
        elif not known:
            ways.append(None)
        else:
            ways.append(way.need_bytes <= max(known) and (host is None or way.host_bytes <= host))
    return ways[0], ways[1]


def recommended(found: Sequence[Row]) -> Row | None:
    """The best that fits wholly when everything else is unloaded; what is common where nobody knows what fits."""
    whole = [row for row in found if not row.choice["missing"]]
    usual = [row for row in whole if row.label not in EXACT] or whole
    known = [row for row in usual if row.ever is not None]
    if known:
        return max((row for row in known if row.ever), key=lambda row: row.size_bytes, default=None)
    by_label = {row.label: row for row in reversed(usual)}
    common = next((by_label[label] for label in COMMON if label in by_label), None)
    return common or (usual[0] if usual else None)


def lines(found: Sequence[Row], chosen: Row | None, output: Output) -> list[str]:
    head = ("QUANTIZATION", "SIZE", "NEEDS", "FITS NOW", "FITS AT MOST", "")
    body = []
    for row in found:
        parts = len(row.choice["files"])
        notes = (
            [f"{missing} of its parts {'is' if missing == 1 else 'are'} missing"]
            if (missing := row.choice["missing"])
            else []
        )
        notes += [f"in {parts} parts"] if parts > 1 else []
        notes += ["recommended"] if row is chosen else []
        about = "about " if row.way.source == "guess" else ""
        body.append(
            (
                (row.label, "bold" if row is chosen else ""),
                (size(row.size_bytes), ""),
                (about + size(row.way.need_bytes), ""),
                _word(row.now),
                _word(row.ever),
                (", ".join(notes), ""),
            )
        )
    return table(output, head, body)


def _word(answer: bool | None) -> tuple[str, str]:
    return {None: ("", ""), True: ("yes", "green"), False: ("no", "red")}[answer]
