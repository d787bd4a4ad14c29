"""``gpudctl status``: everything at one moment. Asks the daemon once, and never starts it."""

import re
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser
from gpud.cli.output import Output, mib, since, size, span, table, until
from gpud.core.counts import NONE_THERE, plural

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Show the models and the memory they hold, the GPUs and the other programs on
them, the queue, the claims, jobs and holds, and the shells that have used a
loaded model. With MODEL, show everything about that model. This command never
starts gpud and never wakes a sleeping GPU."""

EXAMPLES = (
    "gpudctl status",
    "gpudctl status qwen3-8b",
    "gpudctl --json status | jq -r '.models[] | select(.state == \"ready\") | .id'",
)

STATE_COLORS = {
    "ready": "green",
    "busy": "green",
    "loading": "yellow",
    "queued": "yellow",
    "unloading": "yellow",
    "failed": "red",
    "unloaded": "dim",
}

SOURCES = {
    "measured": "as measured",
    "declared": "as configured",
    "probe": "by the engine's own count",
    "formula": "as calculated",
    "guess": "a guess",
}
"""Where a need comes from, for a person."""

DEGRADED = {
    "cuda-unavailable": "CUDA does not work; models run on the processor or not at all",
    "cpu-fallback": "an engine runs on the processor although a GPU is there",
    "driver-mismatch": "the driver and its libraries are of different versions; reboot, or reload the driver",
    "over-budget": "the models hold more than the budget",
    "backend-missing": "an engine that is configured cannot be found",
    "gpu-unavailable": "a GPU does not answer",
    "state-not-kept": "the state directory cannot be written: engines cannot be found again after a restart",
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="show everything about this model")


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        if arguments.model:
            record, status = await gpud.about(arguments.model)
            output.result("\n".join(one_model(record, status, output)), as_data(record))
        else:
            status = await gpud.status()
            output.result("\n".join(everything(status, gpud.bus_name, output)), as_data(status) | {"bus": gpud.kind})
        return 0

    return client.run(work, arguments.bus)


# For programs --------------------------------------------------------------------------------------------------------


def as_data(value: Any) -> Any:
    """The answer of the bus with keys as JSON has them: ``LastUsedUSec`` becomes ``last_used_usec``."""
    if isinstance(value, dict):
        return {snake(key): as_data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_data(item) for item in value]
    return value


def snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.replace("USec", "Usec")).lower()


# For a person --------------------------------------------------------------------------------------------------------


def everything(status: dict[str, Any], bus: str, output: Output) -> list[str]:
    state = output.paint(status["State"], "bold")
    lines = [f"gpud {status['Version']} on the {bus}: {state}"]
    if degraded := status["Degraded"]:
        words = status.get("DegradedText") or DEGRADED.get(degraded, "something is wrong")
        lines.append(output.paint(f"degraded: {degraded} ({words})", "red"))
        if hint := status.get("DegradedHint"):
            lines.append(hint)
    if given := status.get("Yielded"):
        lines.append(output.paint(yielded(given), "yellow"))
    lines += ["", *models(status["Models"], output)]
    for gpu in status["Gpus"]:
        lines += ["", *device(gpu, status["Models"], output)]
    if status.get("Queue"):
        lines += ["", *(waiting(record, status.get("Claims", ())) for record in status["Queue"])]
    if status.get("Claims"):
        lines += ["", *(claim(record, status["Gpus"]) for record in status["Claims"])]
    if status["Jobs"]:
        lines += ["", *(job(record) for record in status["Jobs"])]
    if status["Holds"]:
        lines += ["", *(hold(record) for record in status["Holds"])]
    if at_work := [record for record in status.get("Sessions", ()) if record["Used"]]:
        lines += ["", *(session(record) for record in at_work)]
    return lines


def models(records: list[dict[str, Any]], output: Output) -> list[str]:
    if not records:
        return [NONE_THERE]
    head = ("MODEL", "ENGINE", "STATE", "MEMORY", "CONTEXT", "KV", "LAST USED", "UNLOADS IN", "HOLDS")
    rows = [
        (
            (record["Id"], ""),
            (record["Backend"], ""),
            (state_words(record), STATE_COLORS.get(record["State"], "")),
            (memory(record), ""),
            (str(record["ContextSize"] or ""), ""),
            (mib(record["KvBytes"]) if record.get("KvBytes") and memory(record) else "", ""),
            (last_used(record), ""),
            (unloads_in(record), ""),
            (str(record["Holds"] or ""), ""),
        )
        for record in records
    ]
    lines = table(output, head, rows)
    lines += [output.paint(f"{one['Id']}: reduced to {one['Reduced']}", "yellow") for one in records if reduced(one)]
    for record in records:
        lines += [output.paint(line, "red") for line in trouble(record)]
    return lines


def reduced(record: dict[str, Any]) -> bool:
    """Whether a model is loaded with less than is configured."""
    return bool(record.get("Reduced")) and record["State"] not in ("unloaded", "failed")


def state_words(record: dict[str, Any]) -> str:
    state: str = record["State"]
    if state == "loading" and record.get("Progress") is not None:
        return f"loading {record['Progress']:.0%}"
    if state == "busy":
        return f"busy ({record['InFlight']})"
    if state == "failed" and record["Attempts"] > 1:
        return f"failed ({record['ErrorCode'] or 'crash'} ×{record['Attempts']})"
    return state


def memory(record: dict[str, Any]) -> str:
    """What it holds; with ``~`` before it, what is expected or promised."""
    if record["VramBytes"]:
        return mib(record["VramBytes"])
    return f"~{mib(record['NeedBytes'])}" if record["NeedBytes"] else ""


def last_used(record: dict[str, Any]) -> str:
    return "now" if record["State"] == "busy" else since(record["LastUsedUSec"])


def unloads_in(record: dict[str, Any]) -> str:
    if record["State"] not in ("ready", "busy"):
        return ""
    if record["Pinned"]:
        return "pinned"
    return until(record["UnloadAtUSec"]) or ("held" if record["Holds"] else "never")


def trouble(record: dict[str, Any]) -> list[str]:
    """The error of a model, the advice, and when it is tried again."""
    if not record["Error"] or record["State"] not in ("failed", "queued", "loading", "unloaded"):
        return []
    lines = [f"{record['Id']}: {record['Error']}"]
    if record["ErrorHint"]:
        lines.append(f"  {record['ErrorHint']}")
    if record["RetryAtUSec"]:
        lines.append(f"  attempt {record['Attempts'] + 1} in {until(record['RetryAtUSec'])}")
    elif record["State"] == "failed":
        name = record["Id"]
        lines.append(f'  not tried again by itself: correct it, then "gpudctl reset {name}" and "gpudctl load {name}"')
    return lines


def device(gpu: dict[str, Any], records: list[dict[str, Any]], output: Output) -> list[str]:
    is_host = gpu["Uuid"] == "host"
    name = "Host memory" if is_host else f"GPU {gpu['Index']}  {gpu['Name']}"
    facts = []
    if gpu["Asleep"]:
        facts.append("asleep, left alone")
    if "VramUsed" in gpu and "VramTotal" in gpu:
        facts.append(f"{size(gpu['VramUsed'])} of {size(gpu['VramTotal'])} used")
    elif "VramTotal" in gpu:
        facts.append(size(gpu["VramTotal"]))
    if "Budget" in gpu:
        free = f", {size(gpu['Available'])} available" if "Available" in gpu else ""
        facts.append(f"budget {size(gpu['Budget'])}: {size(gpu['Committed'])} for models{free}")
    readings = [
        f"{gpu['Utilization']} %" if "Utilization" in gpu else "",
        f"{gpu['Temperature']} °C" if "Temperature" in gpu else "",
        f"{gpu['PowerMilliWatt'] / 1000:.0f} W" if "PowerMilliWatt" in gpu else "",
    ]
    facts.append(", ".join(filter(None, readings)))
    lines = [f"{output.paint(name, 'bold')}: {'; '.join(filter(None, facts))}"]
    if gpu["Health"]:
        lines.append(output.paint(f"  {gpu['Health']}", "red"))
    if gpu.get("Alert"):
        lines.append(output.paint(f"  nearly full: {size(gpu.get('VramUsed', 0))} are used", "red"))
    return lines + others(gpu, records)


def others(gpu: dict[str, Any], records: list[dict[str, Any]]) -> list[str]:
    """What other programs hold, with the names of those that the driver tells."""
    named = [
        f"{one['Name'] or 'unknown'} (pid {one['Pid']})" + (f" {mib(one['UsedBytes'])}" if "UsedBytes" in one else "")
        for one in strangers(gpu, records)
    ]
    foreign = gpu.get("VramForeign", 0)
    if not named and (not foreign or gpu["Uuid"] == "host"):
        return []
    total = f" {mib(foreign)}" if foreign else ""
    return [f"  other programs{total}" + (f": {', '.join(named)}" if named else "")]


def strangers(gpu: dict[str, Any], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The processes on a device that are not gpud's, the largest first."""
    own = {pid for record in records for pid in record.get("Pids", ())}
    found = [one for one in gpu["Processes"] if not one.get("Own", one["Pid"] in own)]
    return sorted(found, key=lambda one: -one.get("UsedBytes", 0))


def yielded(record: dict[str, Any]) -> str:
    """That the GPUs are given away: by whom, why and until when."""
    by = record["Caller"] or f"uid {record['Uid']}"
    why = f": {record['Why']}" if record["Why"] else ""
    left = f"for {until(record['UntilUSec'])} more" if record["UntilUSec"] else 'until "gpudctl resume"'
    return f"the GPUs are given away {left}, by {by}{why}"


def waiting(record: dict[str, Any], claims: Sequence[dict[str, Any]]) -> str:
    """One who waits for memory, on one line."""
    what = f'"{record["Model"]}"' if record["Model"] else claimant(record["Claim"], claims)
    facts = [f"needs {size(record['NeedBytes'])}" if record["NeedBytes"] else ""]
    facts.append(f"{record['Priority']} priority" if record["Priority"] != "normal" else "")
    facts.append(f"for {span_since(record['SinceUSec'])}" if record["SinceUSec"] else "")
    facts.append("it is its turn" if record["Overdue"] else "")
    reason = f": {record['WaitsFor']}" if record["WaitsFor"] else ""
    return f"waits {record['Position']}: {what}, " + ", ".join(filter(None, facts)) + reason


def claimant(number: int, claims: Sequence[dict[str, Any]]) -> str:
    """A claim by the name of its program."""
    who = next((one["Who"] for one in claims if one["Id"] == number), "")
    return f"claim {number} of {who}" if who else f"claim {number}"


def claim(record: dict[str, Any], gpus: Sequence[dict[str, Any]]) -> str:
    """One claim on one line: what it has claimed, beside what it uses."""
    used = f", uses {size(record['UsedBytes'])}" if "UsedBytes" in record else ""
    where = f" on {place_name(record['Device'], gpus)}" if record["Granted"] else ", waits"
    why = f": {record['Why']}" if record["Why"] else ""
    by = record["Caller"] or f"uid {record['Uid']}"
    when = f" for {span_since(record['SinceUSec'])}" if record["SinceUSec"] else ""
    return f"claim {record['Id']}: {record['Who']}, {size(record['Bytes'])}{where}{used}, by {by}{when}{why}"


def place_name(device: str, gpus: Sequence[dict[str, Any]]) -> str:
    """A device by its number, the machine's own memory by its name."""
    gpu = next((gpu for gpu in gpus if gpu["Uuid"] == device), None)
    return device if gpu is None or device == "host" else f"GPU {gpu['Index']}"


def job(record: dict[str, Any]) -> str:
    what = f'{record["Kind"]} "{record["Model"]}"' if record["Model"] else f"{record['Kind']} everything"
    progress = f"{record['Progress']:.0%}" if record.get("Progress") is not None else ""
    if record.get("Bytes") is not None:
        of = f" of {size(record['TotalBytes'])}" if record["TotalBytes"] else ""
        progress = ", ".join(filter(None, (f"{size(record['Bytes'])}{of}", progress)))
    by = f"for {record['Caller'] or 'uid ' + str(record['Uid'])}"
    return f"job {record['Id']}: " + ", ".join(
        filter(None, (what, record["Stage"], progress, by, f"asked {since(record['SinceUSec'])}"))
    )


def session(record: dict[str, Any]) -> str:
    """One who is at work, and what goes with them; whoever has used nothing is not worth a line."""
    where = f" on {record['Terminal']}" if record["Terminal"] else ""
    alone = record["Alone"]
    goes = f", and alone {', '.join(alone)}" if alone and alone != record["Used"] else ""
    if alone and alone == record["Used"]:
        goes = ", and nobody else has"
    return f"{record['Caller']} of uid {record['Uid']}{where} has used {', '.join(record['Used'])}{goes}"


def hold(record: dict[str, Any]) -> str:
    who = record["Application"] or record["Caller"] or f"uid {record['Uid']}"
    what = f'hold on "{record["Model"]}"' if record["Model"] else inhibited(record["What"])
    reason = f": {record['Reason']}" if record["Reason"] else ""
    when = f" for {span_since(record['SinceUSec'])}" if record["SinceUSec"] else ""
    return f"{what} by {who}{when}{reason}"


def inhibited(what: str) -> str:
    """What a program forbids: ``unload`` and ``evict`` keep all loaded, ``load`` and ``game`` keep the GPUs empty."""
    words = what.split(":")
    kept = ", ".join(word for word in words if word not in ("load", "game"))
    parts = [
        f"hold on everything ({kept})" if kept else "",
        "loading forbidden" if "load" in words else "",
        "GPUs left to a game" if "game" in words else "",
    ]
    return " and ".join(filter(None, parts))


def span_since(at_usec: int) -> str:
    return since(at_usec).removesuffix(" ago")


def one_model(record: dict[str, Any], status: dict[str, Any], output: Output) -> list[str]:
    gpu = next((gpu for gpu in status["Gpus"] if gpu["Uuid"] == record["Device"]), None)
    place = record["Device"] if gpu is None or gpu["Uuid"] == "host" else f"GPU {gpu['Index']} ({gpu['Name']})"
    why = f" ({record['Reason']})" if record["Reason"] else ""
    shares = record.get("Shares", {})
    if len(shares) > 1:
        place = ", ".join(f"{place_name(device, status['Gpus'])} {mib(share)}" for device, share in shares.items())
    source = SOURCES.get(record.get("NeedSource", ""), record.get("NeedSource", ""))
    kv = f", {mib(record['KvBytes'])} for keys and values" if record.get("KvBytes") else ""
    facts = (
        ("engine", record["Backend"]),
        ("state", output.paint(state_words(record), STATE_COLORS.get(record["State"], "")) + why),
        ("aliases", ", ".join(record["Aliases"])),
        ("device", place),
        ("memory", f"{mib(record['VramBytes'])} measured" if record["VramBytes"] else ""),
        ("needs", mib(record["NeedBytes"]) + (f" ({source})" if source else "") if record["NeedBytes"] else ""),
        (
            "context",
            f"{plural(record['ContextSize'], 'token')}{kv}" if record["ContextSize"] else kv.removeprefix(", "),
        ),
        ("reduced", record.get("Reduced", "")),
        ("waits for", record.get("WaitsFor", "")),
        ("requests", str(record["InFlight"]) if record["InFlight"] else ""),
        ("holds", str(record["Holds"]) if record["Holds"] else ""),
        ("last used", last_used(record)),
        ("unloads in", unloads_in(record)),
        ("last load took", span(record["LoadUSec"] / 1e6) if record["LoadUSec"] >= 1e6 else ""),
        ("process", str(record["Pid"]) if record["Pid"] else ""),
        ("port", str(record["Port"]) if record["Port"] else ""),
        ("restarts", str(record["Restarts"]) if record["Restarts"] else ""),
    )
    width = max(len(name) for name, _ in facts)
    lines = [output.paint(record["Id"], "bold"), *(f"  {name:<{width}}  {text}" for name, text in facts if text)]
    lines += [f"  {hold(one)}" for one in status["Holds"] if one["Model"] == record["Id"]]
    lines += [f"  {job(one)}" for one in status["Jobs"] if one["Model"] == record["Id"]]
    lines += [f"  {waiting(one, ())}" for one in status.get("Queue", ()) if one["Model"] == record["Id"]]
    return lines + [output.paint(line, "red") for line in trouble(record)]
