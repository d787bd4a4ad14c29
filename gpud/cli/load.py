"""``gpudctl load``: has models loaded, shows how far they are, and waits until they answer."""

from argparse import Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import PRIORITIES, Parser, duration, patience, whole
from gpud.cli.exits import DONE, FAILED, STATUSES, exit_status
from gpud.cli.output import Output, mib, span
from gpud.core.counts import plural
from gpud.core.errors import Canceled, GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud
    from gpud.cli.jobs import Ended

DESCRIPTION = """\
Load models and wait until they are ready. gpud makes room by unloading models
that are not in use. If that is not enough, the load waits in the queue; a load
that can never fit is refused. If the model is already loaded, the command
succeeds at once. Ctrl-C cancels the loads that this command started."""

EXAMPLES = (
    "gpudctl load qwen3-8b",
    "gpudctl load --context 16384 --idle-timeout 1h qwen3-8b",
    "gpudctl load --no-evict tiny      # fail instead of unloading another model",
    "gpudctl load --priority high --wait 10m big",
    "gpudctl load --engine vllm --engine llama_server big",
    "gpudctl load --no-wait big        # print the number of the job and return",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help="name or alias of a model")
    parser.add_argument(
        "--context",
        type=whole(1, (1 << 32) - 1),
        metavar="N",
        help="tokens of context, instead of the configured number",
    )
    parser.add_argument(
        "--idle-timeout",
        type=duration,
        metavar="TIME",
        help="unload it after TIME without a request (90s, 10m, 1h; never), instead of the configured time",
    )
    parser.add_argument("--no-evict", action="store_true", help="fail instead of unloading another model to make room")
    parser.add_argument("--priority", choices=PRIORITIES, help="queue priority, instead of the model's own")
    parser.add_argument(
        "--wait",
        type=patience,
        metavar="TIME",
        help="wait for memory at most TIME (90s, 10m; 0: do not wait), instead of the configured time",
    )
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="ENGINE",
        help="use only this engine; if repeated, the first that can load the model",
    )
    parser.add_argument("--no-wait", action="store_true", help="return at once; the load continues")


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    return client.run(lambda gpud: load(gpud, arguments, output), arguments.bus, start=True)


def options_of(arguments: Namespace) -> dict[str, Any]:
    """The options of LoadWithOptions; empty when Load says it all."""
    from gpud.cli.library import Variant

    options = {}
    if arguments.context is not None:
        options["context-size"] = Variant("u", arguments.context)
    if arguments.idle_timeout is not None:
        options["idle-timeout-usec"] = Variant("t", round(arguments.idle_timeout * 1e6))
    if arguments.no_evict:
        options["evict"] = Variant("b", False)
    if arguments.priority is not None:
        options["priority"] = Variant("s", arguments.priority)
    if arguments.wait is not None:
        options["wait-usec"] = Variant("t", round(arguments.wait * 1e6))
    if arguments.engine:
        options["engines"] = Variant("as", arguments.engine)
    return options


async def load(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    models = list(dict.fromkeys(arguments.models))
    options = options_of(arguments)
    await gpud.subscribe()
    jobs: dict[int, str] = {}
    refused: dict[str, GpudError] = {}
    for model in models:
        try:
            jobs[await start(gpud, model, options)] = model
        except GpudError as error:
            if len(models) == 1 or error.code == "not-running":
                raise
            output.error(error)
            refused[model] = error
    if arguments.no_wait:
        lines = [f'loading "{model}" (job {job})' for job, model in jobs.items()]
        output.result("\n".join(lines), {"jobs": [{"job": job, "model": model} for job, model in jobs.items()]})
        return max((exit_status(error) for error in refused.values()), default=DONE)
    ended = await wait_for(gpud, jobs, output)
    records = {record["Id"]: record for record in await gpud.models_named(one.model for one in ended)}
    report(output, ended, records)
    statuses = [exit_status(error) for error in refused.values()]
    return max([*statuses, *(status_of(one, records.get(one.model, {})) for one in ended)], default=DONE)


def status_of(ended: "Ended", record: dict[str, Any]) -> int:
    """The exit status for one job: a load that gpud refused for lack of memory is refused, not failed."""
    if ended.done:
        return DONE
    return STATUSES.get(record.get("ErrorCode", ""), FAILED) if ended.result == "failed" else FAILED


async def start(gpud: "Gpud", model: str, options: dict[str, Any]) -> int:
    """Ask for one load; the job."""
    if options:
        (job,) = await gpud.call("LoadWithOptions", "sa{sv}", model, options, asks=True)
    else:
        (job,) = await gpud.call("Load", "s", model, asks=True)
    return int(job)


async def wait_for(gpud: "Gpud", jobs: dict[int, str], output: Output) -> "list[Ended]":
    """Show the progress until the jobs have ended. Interrupted, it says what was canceled."""
    import asyncio

    from gpud.cli import jobs as waiting
    from gpud.cli.progress import watcher

    try:
        with ExitStack() as stack:
            return await waiting.finish(gpud, jobs, watcher(list(jobs.values()), output, stack))
    except asyncio.CancelledError:
        names = ", ".join(f'"{model}"' for model in jobs.values())
        output.error(Canceled(f"interrupted: canceled the load of {names}"))
        raise


def report(output: Output, ended: "list[Ended]", records: dict[str, dict[str, Any]], done: str = "loaded") -> None:
    """What became of each load. ``done``: what is said of those that succeeded."""
    if output.wants_json:
        output.json({"results": [one.as_data() for one in ended]})
    for one in ended:
        if one.done:
            if not output.wants_json:
                output.text(f'{done} "{one.model}"{_facts(records.get(one.model, {}))}')
        else:
            sentence = one.sentence("loading")
            # Advice of the daemon's own is in its sentence; a second one would only be in its way.
            advised = one.record.get("ErrorHint") or one.result in ("canceled", "superseded")
            output.note(f"gpudctl: {sentence}" + ("" if advised else f'; "gpudctl log {one.model}" shows its messages'))


def _facts(record: dict[str, Any]) -> str:
    facts = []
    if load_usec := record.get("LoadUSec"):
        facts.append(f"in {load_usec / 1e6:.1f} s" if load_usec < 60e6 else f"in {span(load_usec / 1e6)}")
    if record.get("NeedBytes"):
        # What it holds is measured a moment later, and may or may not be known by now.
        facts.append(f"{mib(record['NeedBytes'])} reserved")
    elif record.get("VramBytes"):
        facts.append(mib(record["VramBytes"]))
    if record.get("ContextSize"):
        facts.append(f"context {plural(record['ContextSize'], 'token')}")
    return f": {', '.join(facts)}" if facts else ""
