"""``gpudctl status``: everything at one moment. Asks the daemon once, and never starts it."""

import re
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser
from gpud.cli.output import Output, mib, since, size, span, table, until

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Show the models and what they hold, the GPUs and who else uses them, and the jobs and holds there are. With the name of
a model, all that is known of it. It looks without starting gpud and without waking a GPU that sleeps."""

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
    parser.add_argument("model", metavar="MODEL", nargs="?", help="show all about this model")


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        status = await gpud.status()
        if arguments.model:
            from gpud.cli.wait import find

            record = find(status["Models"], arguments.model)
            lines = one_model(record, status, output)
            output.result("\n".join(lines), as_data(record))
        else:
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
        words = DEGRADED.get(degraded, "something is wrong")
        lines.append(output.paint(f"degraded: {degraded} ({words})", "red"))
    lines += ["", *models(status["Models"], output)]
    for gpu in status["Gpus"]:
        lines += ["", *device(gpu, status["Models"], output)]
    if status["Jobs"]:
        lines += ["", *(job(record) for record in status["Jobs"])]
    if status["Holds"]:
        lines += ["", *(hold(record) for record in status["Holds"])]
    return lines


def models(records: list[dict[str, Any]], output: Output) -> list[str]:
    if not records:
        return ["no model is configured: add one under models: in gpud.yaml"]
    head = ("MODEL", "ENGINE", "STATE", "MEMORY", "CONTEXT", "LAST USED", "UNLOADS IN", "HOLDS")
    rows = [
        (
            (record["Id"], ""),
            (record["Backend"], ""),
            (state_words(record), STATE_COLORS.get(record["State"], "")),
            (memory(record), ""),
            (str(record["ContextSize"] or ""), ""),
            (last_used(record), ""),
            (unloads_in(record), ""),
            (str(record["Holds"] or ""), ""),
        )
        for record in records
    ]
    lines = table(output, head, rows)
    for record in records:
        lines += [output.paint(line, "red") for line in trouble(record)]
    return lines


def state_words(record: dict[str, Any]) -> str:
    state: str = record["State"]
    if state == "loading" and record.get("Progress") is not None:
        return f"loading {record['Progress']:.0%}"
    if state == "busy":
        return f"busy ({record['InFlight']})"
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
        lines.append(f'  not tried again by itself: "gpudctl load {record["Id"]}" does, "gpudctl reset" forgets it')
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
    return lines + others(gpu, records)


def others(gpu: dict[str, Any], records: list[dict[str, Any]]) -> list[str]:
    """What other programs hold, with the names of those that the driver tells."""
    own = {pid for record in records for pid in record.get("Pids", ())}
    strangers = [one for one in gpu["Processes"] if one["Pid"] not in own]
    strangers.sort(key=lambda one: -one.get("UsedBytes", 0))
    named = [
        f"{one['Name'] or 'unknown'} (pid {one['Pid']})" + (f" {mib(one['UsedBytes'])}" if "UsedBytes" in one else "")
        for one in strangers
    ]
    foreign = gpu.get("VramForeign", 0)
    if not named and (not foreign or gpu["Uuid"] == "host"):
        return []
    total = f" {mib(foreign)}" if foreign else ""
    return [f"  other programs{total}" + (f": {', '.join(named)}" if named else "")]


def job(record: dict[str, Any]) -> str:
    what = f'{record["Kind"]} "{record["Model"]}"' if record["Model"] else f"{record['Kind']} everything"
    progress = f"{record['Progress']:.0%}" if record.get("Progress") is not None else ""
    by = f"for {record['Caller'] or 'uid ' + str(record['Uid'])}"
    return f"job {record['Id']}: " + ", ".join(
        filter(None, (what, record["Stage"], progress, by, f"asked {since(record['SinceUSec'])}"))
    )


def hold(record: dict[str, Any]) -> str:
    who = record["Application"] or record["Caller"] or f"uid {record['Uid']}"
    what = f'"{record["Model"]}"' if record["Model"] else f"everything ({record['What'].replace(':', ', ')})"
    reason = f": {record['Reason']}" if record["Reason"] else ""
    when = f" for {span_since(record['SinceUSec'])}" if record["SinceUSec"] else ""
    return f"hold on {what} by {who}{when}{reason}"


def span_since(at_usec: int) -> str:
    return since(at_usec).removesuffix(" ago")


def one_model(record: dict[str, Any], status: dict[str, Any], output: Output) -> list[str]:
    gpu = next((gpu for gpu in status["Gpus"] if gpu["Uuid"] == record["Device"]), None)
    place = record["Device"] if gpu is None or gpu["Uuid"] == "host" else f"GPU {gpu['Index']} ({gpu['Name']})"
    why = f" ({record['Reason']})" if record["Reason"] else ""
    facts = (
        ("engine", record["Backend"]),
        ("state", output.paint(state_words(record), STATE_COLORS.get(record["State"], "")) + why),
        ("aliases", ", ".join(record["Aliases"])),
        ("device", place),
        ("memory", f"{mib(record['VramBytes'])} measured" if record["VramBytes"] else ""),
        ("needs", mib(record["NeedBytes"]) if record["NeedBytes"] else ""),
        ("context", f"{record['ContextSize']} tokens" if record["ContextSize"] else ""),
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
    return lines + [output.paint(line, "red") for line in trouble(record)]
