"""``gpudctl explain``: what is true of a model now, and what was decided about it, why, and with which numbers."""

import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser, whole
from gpud.cli.output import Output, mib, size
from gpud.cli.status import SOURCES, place_name, snake, state_words, yielded
from gpud.core.counts import plural

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Explain why a model is loaded, waiting, unloaded or refused: show its current
state, then the decisions about it, newest first, each with the numbers of that
moment. Without MODEL, show all decisions."""

EXAMPLES = (
    "gpudctl explain qwen3-8b",
    "gpudctl explain -n 5",
    "gpudctl explain qwen3-8b --json | jq '.records[0].fields'",
)

COLORS = {"error": "red", "warning": "yellow", "debug": "dim"}

MOST = 500
"""More the daemon does not tell at once."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="name or alias of a model")
    parser.add_argument(
        "-n", "--lines", metavar="N", type=whole(1, MOST), default=20, help="show the last N decisions (default: 20)"
    )


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        record, status = await gpud.about(arguments.model) if arguments.model else (None, await gpud.overview())
        name = record["Id"] if record else ""
        (entries,) = await gpud.call("Explain", "su", name, arguments.lines)
        now = stands(record, status) if record else overall(status)
        lines = [now]
        for entry in entries:
            lines += explained(entry, output, named=record is None)
        if not entries:
            lines.append("no decisions about it are recorded")
        output.result("\n".join(lines), {"model": name, "now": now, "records": [as_data(entry) for entry in entries]})
        return 0

    return client.run(work, arguments.bus)


def as_data(entry: dict[str, Any]) -> dict[str, Any]:
    """A record with keys as JSON has them; ``fields`` keeps the names of the journal."""
    return {snake(key): value for key, value in entry.items()}


# How things stand ----------------------------------------------------------------------------------------------------


def stands(record: dict[str, Any], status: dict[str, Any]) -> str:
    """One model in one sentence: its state and why, what it waits for, what it needs and how that is known, where."""
    reason = f" ({record['Reason']})" if record["Reason"] else ""
    parts = [f'"{record["Id"]}" is {state_words(record)}{reason}']
    place = next((one for one in status["Queue"] if one["Model"] == record["Id"]), None)
    if place is not None:
        parts.append(f"{place['Position']} of {len(status['Queue'])} in the queue")
    if waits_for := record["WaitsFor"] or (place["WaitsFor"] if place else ""):
        parts.append(f"waits for memory: {waits_for}")
    if record["NeedBytes"]:
        source = SOURCES.get(record["NeedSource"], record["NeedSource"])
        parts.append(f"needs {size(record['NeedBytes'])}" + (f" {source}" if source else ""))
    if record["VramBytes"]:
        parts.append(f"holds {size(record['VramBytes'])}")
    if record["Shares"]:
        parts.append(" and ".join(_where(record, device, status) for device in record["Shares"]))
    if record["Reduced"]:
        parts.append(f"reduced to {record['Reduced']}")
    if record["Error"] and record["State"] in ("failed", "unloaded", "queued"):
        parts.append(record["Error"] + (f" ({record['ErrorHint']})" if record["ErrorHint"] else ""))
    return "; ".join(parts)


def _where(record: dict[str, Any], device: str, status: dict[str, Any]) -> str:
    """A place, with the part of it where there are several."""
    place = "in the machine's memory" if device == "host" else f"on {place_name(device, status['Gpus'])}"
    return f"{place} ({mib(record['Shares'][device])})" if len(record["Shares"]) > 1 else place


def overall(status: dict[str, Any]) -> str:
    """gpud in one sentence."""
    loaded = status["LoadedModels"]
    parts = [f"gpud is {status['State']}"]
    parts.append(f"loaded: {', '.join(loaded)}" if loaded else "nothing loaded")
    if status["Queue"]:
        parts.append(f"{plural(len(status['Queue']), 'wish', 'wishes')} for memory waiting")
    if status["Claims"]:
        parts.append(plural(len(status["Claims"]), "claim"))
    if status["Yielded"]:
        parts.append(yielded(status["Yielded"]))
    return "; ".join(parts)


# What was decided ----------------------------------------------------------------------------------------------------


def explained(entry: dict[str, Any], output: Output, *, named: bool) -> list[str]:
    """A record: when, what kind, the sentence; below it the candidates and the numbers."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["AtUSec"] / 1e6))
    about = f"{entry['Model']}: " if named and entry["Model"] and entry["Model"] not in entry["Message"] else ""
    kind = output.paint(entry["Kind"], COLORS.get(entry["Level"], ""))
    lines = [f"{when}  {kind}  {about}{entry['Message']}"]
    lines += [f"    {line}" for line in entry["Detail"]]
    if numbers := ", ".join(figure(name, value) for name, value in entry["Fields"].items() if value != ""):
        lines.append(output.paint(f"    {numbers}", "dim"))
    return lines


def figure(name: str, value: Any) -> str:
    """A field as a person reads it: ``NEED_BYTES`` is a size, ``WAITED_S`` a number of seconds."""
    words = name.lower()
    if words.endswith("_bytes") and isinstance(value, int):
        return f"{words.removesuffix('_bytes').replace('_', ' ')} {size(value)}"
    if words.endswith("_s") and isinstance(value, int | float):
        return f"{words.removesuffix('_s').replace('_', ' ')} {value:.4g} s"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{words.replace('_', ' ')} {shown}"
