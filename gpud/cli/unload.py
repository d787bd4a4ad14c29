"""``gpudctl unload``: has models unloaded and says how much memory that gave back."""

import re
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser
from gpud.cli.exits import DONE, FAILED, BusError, Usage, exit_status
from gpud.cli.output import Output, mib
from gpud.core.counts import plural
from gpud.core.errors import Canceled

if TYPE_CHECKING:
    from gpud.cli.client import Gpud
    from gpud.cli.jobs import Ended

DESCRIPTION = """\
Unload models: running requests finish first, then the engines stop and free
their memory. Without MODEL, unload all models that nobody else holds. Ctrl-C
cancels the unload, unless the engine is already stopping."""

EXAMPLES = (
    "gpudctl unload                # all models, before a game",
    "gpudctl unload qwen3-8b tiny",
    "gpudctl unload --force big    # now, despite holds and running requests",
)

LOADED = ("loading", "ready", "busy", "unloading", "queued")
"""The states of a model that an unload ends."""


_CALLED_OFF = re.compile(
    r'(?:^|; )("[^"]*" (?:no longer waits and its failures are forgotten|does not come back by itself))'
)
"""What the daemon says of models that were not loaded, and for which an unload ended something all the same."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="*", help="name or alias of a model")
    parser.add_argument("--all", action="store_true", help="unload all loaded models, as without MODEL")
    parser.add_argument(
        "--force", action="store_true", help="override other users' holds, and do not wait for running requests"
    )
    parser.add_argument("--no-wait", action="store_true", help="return at once; the unload continues")


def run(arguments: Namespace, output: Output) -> int:
    if arguments.all and arguments.models:
        raise Usage("unload: --all leaves no model to name", hint="leave out either --all or the names")
    if "" in arguments.models:
        raise Usage(
            "unload: the model's name is empty", hint='name a model, or write --all; "gpudctl models" lists them'
        )
    from gpud.cli import client

    return client.run(lambda gpud: unload(gpud, arguments, output), arguments.bus)


async def unload(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    import asyncio

    from gpud.cli import jobs as waiting

    await gpud.subscribe()
    before = {record["Id"]: record for record in (await gpud.overview())["Models"]}
    jobs: dict[int, str] = {}
    worst = DONE
    for model in dict.fromkeys(arguments.models) or [""]:
        try:
            jobs[await start(gpud, model, force=arguments.force)] = model
        except BusError as error:
            if error.code == "not-loaded":
                continue
            if len(arguments.models) < 2:
                raise
            output.error(error)
            worst = max(worst, exit_status(error))
    if arguments.no_wait:
        lines = [f"unloading {_named(model)} (job {job})" for job, model in jobs.items()] or ["nothing loaded"]
        output.result("\n".join(lines), {"jobs": [{"job": job, "model": model} for job, model in jobs.items()]})
        return worst
    try:
        ended = await waiting.finish(gpud, jobs)
    except asyncio.CancelledError:
        output.error(Canceled(f"interrupted: no longer unloading {', '.join(map(_named, jobs.values()))}"))
        raise
    after = {record["Id"]: record for record in (await gpud.overview())["Models"]}
    gone = [name for name, record in before.items() if record["State"] in LOADED and _is_gone(after.get(name))]
    named = set(arguments.models)
    gone = [name for name in gone if not named or named & {name, *before[name].get("Aliases", ())}]
    _report(output, ended, [before[name] for name in gone])
    left = [one for one in ended if not one.done]
    return max(worst, FAILED) if left else worst


async def start(gpud: "Gpud", model: str, *, force: bool) -> int:
    """Ask for one unload, of everything where no model is named; the job."""
    if force:
        from gpud.cli.library import Variant

        options = {"force": Variant("b", True)}
        (job,) = await gpud.call("UnloadWithOptions", "sa{sv}", model, options, asks=True)
    elif model:
        (job,) = await gpud.call("Unload", "s", model, asks=True)
    else:
        (job,) = await gpud.call("UnloadAll", asks=True)
    return int(job)


def _is_gone(record: dict[str, Any] | None) -> bool:
    return record is None or str(record["State"]) not in LOADED


def _named(model: str) -> str:
    return f'"{model}"' if model else "all models"


def _report(output: Output, ended: "list[Ended]", gone: list[dict[str, Any]]) -> None:
    freed = sum(held_bytes(record) for record in gone)
    problems = [one.sentence("unloading") for one in ended if not one.done]
    problems += [f"not unloaded: {left}" for one in ended if one.done and (left := _left_out(one))]
    parts = [f"unloaded {plural(len(gone), 'model')}, freed {mib(freed)}"] if gone else []
    parts += [sentence for one in ended if one.done for sentence in _CALLED_OFF.findall(one.message)]
    text = "; ".join(parts)
    if not parts and not problems:
        text = "nothing loaded"
    data = {
        "unloaded": [record["Id"] for record in gone],
        "freed_bytes": freed,
        "results": [one.as_data() for one in ended],
    }
    output.result(text, data)
    for problem in problems:
        output.note(f"gpudctl: {problem}")


def held_bytes(record: dict[str, Any]) -> int:
    """What was measured; where nothing was, what a model that was ready had been promised."""
    promised = record["NeedBytes"] if record["State"] in ("ready", "busy") else 0
    return int(record["VramBytes"] or promised)


def _left_out(one: "Ended") -> str:
    """What an unload of everything has left loaded: the part of its message behind the count."""
    if one.model:
        return ""
    message = _CALLED_OFF.sub("", one.message)
    counted, _, rest = message.partition("; ")
    return rest if counted.startswith(("unloaded ", "nothing ")) else message.removeprefix("; ")
