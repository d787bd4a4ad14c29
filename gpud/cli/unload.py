"""``gpudctl unload``: has models unloaded and says how much memory that gave back."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.exits import DONE, FAILED, BusError, Usage, exit_status
from gpud.cli.output import Output, mib
from gpud.core.counts import plural
from gpud.core.errors import Canceled
from gpud.core.no_longer_wanted import no_longer_wanted

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


def add_arguments(parser: Parser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="*", help="name or alias of a model")
    parser.add_argument("--all", action="store_true", help="unload all loaded models, as without MODEL")
    parser.add_argument(
        "--force", action="store_true", help="override other users' holds, and do not wait for running requests"
    )
    parser.add_argument("--no-wait", action="store_true", help="return at once; the unload continues")


def run(arguments: Namespace, output: Output) -> int:
    if arguments.all and arguments.models:
        raise Usage("unload: --all takes no names of models", hint="leave out either --all or the names")
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
    _report(output, ended)
    return worst if all(one.done for one in ended) else max(worst, FAILED)


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


def _named(model: str) -> str:
    return f'"{model}"' if model else "all models"


def _report(output: Output, ended: "list[Ended]") -> None:
    records = [one.record for one in ended]
    unloaded = {name: size for record in records for name, size in record.get("Unloaded", {}).items()}
    freed = sum(unloaded.values())
    called_off = list(dict.fromkeys(name for record in records for name in record.get("CalledOff", ())))
    stay_away = list(dict.fromkeys(name for record in records for name in record.get("StayAway", ())))
    left = [why for one in ended if one.done for why in one.record.get("Left", {}).values()]
    problems = [one.sentence("unloading") for one in ended if not one.done]
    if left:
        problems.append(f"not unloaded: {'; '.join(left)}")
    parts = [f"unloaded {plural(len(unloaded), 'model')}, freed {mib(freed)}"] if unloaded else []
    parts += no_longer_wanted(called_off, stay_away)
    parts += [one.message for one in ended if one.done and one.message and not one.record]
    text = "; ".join(parts)
    if not parts and not problems:
        text = "nothing loaded"
    data = {
        "unloaded": list(unloaded),
        "freed_bytes": freed,
        "called_off": called_off,
        "stay_away": stay_away,
        "results": [one.as_data() for one in ended],
    }
    output.result(text, data)
    for problem in problems:
        output.note(f"gpudctl: {problem}")
