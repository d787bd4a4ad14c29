"""``gpudctl vram``: who holds the memory of each device, and how much of it is whose to give."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser
from gpud.cli.output import Output, size
from gpud.cli.status import strangers, waiting, yielded

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Show, for each GPU and for the machine's memory: the total, used and free
memory, the reserve, the budget and how much of it is promised, and who holds
the memory: models, claims, and other programs by name. This command never
wakes a sleeping GPU."""

EXAMPLES = (
    "gpudctl vram",
    "gpudctl vram --json | jq '.gpus[0].others'",
)

Record = dict[str, Any]


def add_arguments(parser: Parser) -> None:
    """It has no arguments of its own."""


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        status = await gpud.overview()
        data = as_data(status)
        output.result("\n".join(block(data, status, output)), data)
        return 0

    return client.run(work, arguments.bus)


# For programs --------------------------------------------------------------------------------------------------------


def as_data(status: Record) -> Record:
    """The account of all devices; what is not known is null."""
    models, claims = status["Models"], status.get("Claims", [])
    devices = [device(gpu, models, claims) for gpu in status["Gpus"]]
    gpus = [one for one in devices if one["uuid"] != "host"]
    counted = gpus or devices
    total, used = (_sum(one[key] for one in counted) for key in ("total_bytes", "used_bytes"))
    return {
        "total_bytes": total,
        "used_bytes": used,
        "free_bytes": _difference(total, used),
        "used_percent": _percent(used, total),
        "budget_bytes": _sum(one["budget_bytes"] for one in counted),
        "committed_bytes": _sum(one["committed_bytes"] for one in counted),
        "available_bytes": _sum(one["available_bytes"] for one in counted),
        "gpus": gpus,
        "host": next((one for one in devices if one["uuid"] == "host"), None),
        "loaded_models": list(status["LoadedModels"]),
        "queue": [one["Model"] or f"claim {one['Claim']}" for one in status.get("Queue", [])],
        "yielded": bool(status.get("Yielded")),
        "alerts": [alert(one) for one in devices if one["alert"]],
    }


def device(gpu: Record, models: list[Record], claims: list[Record]) -> Record:
    """One device, and everybody on it."""
    power = gpu.get("PowerMilliWatt")
    return {
        "uuid": gpu["Uuid"],
        "index": gpu["Index"],
        "name": gpu["Name"],
        "vendor": gpu["Vendor"],
        "driver": gpu.get("Driver", ""),
        "asleep": gpu["Asleep"],
        "health": gpu["Health"],
        "total_bytes": gpu.get("VramTotal"),
        "used_bytes": gpu.get("VramUsed"),
        "free_bytes": _difference(gpu.get("VramTotal"), gpu.get("VramUsed")),
        "used_percent": _percent(gpu.get("VramUsed"), gpu.get("VramTotal")),
        "reserve_bytes": gpu.get("Reserve"),
        "budget_bytes": gpu.get("Budget"),
        "committed_bytes": gpu["Committed"],
        "available_bytes": gpu.get("Available"),
        "utilization_percent": gpu.get("Utilization"),
        "temperature_c": gpu.get("Temperature"),
        "power_w": None if power is None else power / 1000,
        "alert": gpu.get("Alert", False),
        "models": [_model(one, gpu["Uuid"]) for one in models if gpu["Uuid"] in one.get("Shares", {})],
        "claims": [_claim(one) for one in claims if one["Device"] == gpu["Uuid"]],
        "others": [
            {"pid": one["Pid"], "name": one["Name"], "bytes": one.get("UsedBytes")} for one in strangers(gpu, models)
        ],
        "others_bytes": gpu.get("VramForeign"),
    }


def _model(record: Record, uuid: str) -> Record:
    """Use is measured for a model as a whole: of one that is on several devices it is not known by device."""
    alone = len([device for device in record["Shares"] if device != "host"]) <= 1 and uuid == record["Device"]
    return {
        "name": record["Id"],
        "state": record["State"],
        "reserved_bytes": record["Shares"][uuid],
        "used_bytes": (record["VramBytes"] or None) if alone else None,
    }


def _claim(record: Record) -> Record:
    return {
        "id": record["Id"],
        "who": record["Who"],
        "why": record["Why"],
        "uid": record["Uid"],
        "bytes": record["Bytes"],
        "used_bytes": record.get("UsedBytes"),
    }


def _sum(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _difference(total: int | None, used: int | None) -> int | None:
    return None if total is None or used is None else max(0, total - used)


def _percent(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else round(100 * part / whole, 1)


def alert(one: Record) -> str:
    where = "the machine's memory" if one["uuid"] == "host" else f"GPU {one['index']} ({one['name']})"
    used = (
        "" if one["used_percent"] is None else f": {one['used_percent']:.0f} % of {size(one['total_bytes'])} are used"
    )
    return f"{where} is nearly full{used}"


# For a person --------------------------------------------------------------------------------------------------------


def block(data: Record, status: Record, output: Output) -> list[str]:
    """The old status block: totals, each device with its readings and processes, alerts."""
    lines = [
        output.paint("=== VRAM Status ===", "bold"),
        _line("Total", data["total_bytes"]),
        _line("Used", data["used_bytes"], data["used_percent"]),
        _line("Free", data["free_bytes"]),
        _line("Budget", data["budget_bytes"]),
        _line("Committed", data["committed_bytes"]),
    ]
    if given := status.get("Yielded"):
        lines += ["", output.paint(yielded(given), "yellow")]
    for one in [*data["gpus"], *([data["host"]] if data["host"] else [])]:
        lines += ["", *_device(one, output)]
    lines += _waiting(status)
    if data["alerts"]:
        lines += ["", "Alerts:", *(output.paint(f"  {text}", "red") for text in data["alerts"])]
    return lines


def _line(name: str, size_bytes: int | None, percent: float | None = None) -> str:
    share = "" if percent is None else f" ({percent:.0f} %)"
    return f"{name + ':':<11}{'unknown' if size_bytes is None else size(size_bytes)}{share}"


def _device(one: Record, output: Output) -> list[str]:
    is_host = one["uuid"] == "host"
    driver = f", driver {one['driver']}" if one["driver"] else ""
    lines = [output.paint("Host memory" if is_host else f"GPU {one['index']}: {one['name']}{driver}", "bold")]
    if one["asleep"]:
        lines.append("  asleep, left alone")
    if one["health"]:
        lines.append(output.paint(f"  {one['health']}", "red"))
    if not is_host:
        lines.append(f"  Id:          {one['uuid']}")
    lines.append(f"  Memory:      {_memory(one)}")
    if one["budget_bytes"] is not None:
        left = "" if one["available_bytes"] is None else f", {size(one['available_bytes'])} available"
        reserve = f", {size(one['reserve_bytes'])} always left free" if one["reserve_bytes"] else ""
        lines.append(
            f"  Budget:      {size(one['budget_bytes'])}{reserve}; {size(one['committed_bytes'])} promised{left}"
        )
    readings = [
        "" if one["temperature_c"] is None else f"{one['temperature_c']} °C",
        "" if one["utilization_percent"] is None else f"{one['utilization_percent']} % busy",
        "" if one["power_w"] is None else f"{one['power_w']:.0f} W",
    ]
    if any(readings):
        lines.append(f"  Temperature: {', '.join(filter(None, readings))}")
    return lines + _holders(one)


def _memory(one: Record) -> str:
    if one["total_bytes"] is None:
        return "unknown"
    if one["used_bytes"] is None:
        return size(one["total_bytes"])
    used, total, free = (size(one[key]) for key in ("used_bytes", "total_bytes", "free_bytes"))
    return f"{used} of {total} used ({one['used_percent']:.0f} %), {free} free"


def _holders(one: Record) -> list[str]:
    lines = []
    if one["models"]:
        lines.append("  Models:")
        for model in one["models"]:
            used = f", uses {size(model['used_bytes'])}" if model["used_bytes"] else ""
            lines.append(f"    {model['name']}  {size(model['reserved_bytes'])}{used}  {model['state']}")
    if one["claims"]:
        lines.append("  Claims:")
        for claim in one["claims"]:
            used = "" if claim["used_bytes"] is None else f", uses {size(claim['used_bytes'])}"
            why = f"  {claim['why']}" if claim["why"] else ""
            lines.append(f"    {claim['who']}  {size(claim['bytes'])}{used}  uid {claim['uid']}{why}")
    if one["others"] or (one["others_bytes"] and one["uuid"] != "host"):
        total = f" {size(one['others_bytes'])}" if one["others_bytes"] else ""
        lines.append(f"  Other programs:{total}")
        for other in one["others"]:
            held = "" if other["bytes"] is None else f"  {size(other['bytes'])}"
            lines.append(f"    {other['name'] or 'unknown'} (pid {other['pid']}){held}")
    return lines


def _waiting(status: Record) -> list[str]:
    queue: Sequence[Record] = status.get("Queue", ())
    return ["", *(waiting(one, status.get("Claims", ())) for one in queue)] if queue else []
