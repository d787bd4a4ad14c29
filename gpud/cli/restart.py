"""``gpudctl restart``: models, or all that an engine has loaded, unloaded and loaded again with new processes."""

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpud.cli import meant
from gpud.cli.arguments import Parser
from gpud.cli.exits import DONE, FAILED, REFUSED, exit_status
from gpud.cli.output import Output, mib
from gpud.cli.unload import LOADED
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud
    from gpud.cli.jobs import Ended

DESCRIPTION = """\
Unload models and load them again: running requests finish first, then the
engines stop, and new ones start with the current configuration. ENGINE stands
for all models that it has loaded, "llamacpp" for those of every llama.cpp
engine. A model that is not loaded, or has failed, is loaded."""

EXAMPLES = (
    "gpudctl restart qwen3-8b",
    "gpudctl restart llamacpp           # all that llama.cpp has loaded",
    "gpudctl restart ollama --force     # now, despite holds and running requests",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "names",
        metavar="MODEL|ENGINE",
        nargs="+",
        help="name or alias of a model, or an engine",
    )
    parser.add_argument(
        "--force", action="store_true", help="override other users' holds, and do not wait for running requests"
    )


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    return client.run(lambda gpud: restart(gpud, arguments, output), arguments.bus)


async def restart(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    from gpud.cli.load import report, start, status_of, wait_for

    await gpud.subscribe()
    before = await meant.known(gpud, arguments.names)
    wanted = await meant.models(gpud, before, arguments.names, "restart", of_engine=LOADED)
    if not wanted:
        return _nothing(before, arguments.names, output)
    unloaded, stayed, status = await _unload(gpud, wanted, output, force=arguments.force)
    if unloaded and not output.wants_json:
        names = ", ".join(f'"{name}"' for name in unloaded)
        output.text(f"unloaded {names}, freed {mib(sum(unloaded.values()))}")
    jobs: dict[int, str] = {}
    # What was used last is wanted first.
    for record in sorted(wanted, key=lambda record: -record["LastUsedUSec"]):
        if record["Id"] in stayed:
            continue
        try:
            jobs[await start(gpud, record["Id"], {})] = record["Id"]
        except GpudError as error:
            output.error(error)
            status = max(status, exit_status(error))
    ended: list[Ended] = await wait_for(gpud, jobs, output) if jobs else []
    after = {record["Id"]: record for record in await gpud.models_named(one.model for one in ended)}
    if output.wants_json:
        output.json(
            {
                "restarted": [one.model for one in ended if one.done],
                "unloaded": list(unloaded),
                "stayed": sorted(stayed),
                "results": [one.as_data() for one in ended],
            }
        )
        for one in ended:
            if not one.done:
                output.note(f"gpudctl: {one.sentence('loading')}")
    else:
        report(output, ended, after, "restarted")
    return max([status, *(status_of(one, after.get(one.model, {})) for one in ended)])


def _nothing(records: Sequence[dict[str, Any]], names: Sequence[str], output: Output) -> int:
    """Engines that have nothing loaded."""
    engines = set().union(*(meant.engines(records, name) for name in names))
    failed = [record for record in records if record["Backend"] in engines and record["State"] == "failed"]
    text = f"nothing of {', '.join(names)} is loaded: nothing to restart"
    if failed:
        text += f"; failed: {', '.join(_quoted(failed))}: gpudctl restart {failed[0]['Id']} tries it again"
    output.result(text, {"restarted": [], "unloaded": [], "stayed": [], "results": []})
    return DONE


async def _unload(
    gpud: "Gpud", wanted: Sequence[dict[str, Any]], output: Output, *, force: bool
) -> tuple[dict[str, int], set[str], int]:
    """Have all of them unloaded, and wait for the last: what went, with the bytes that it gave back, what stayed, and
    the exit status for that.
    """
    from gpud.cli import jobs as waiting
    from gpud.cli.unload import start as start_unload

    leaving: dict[int, str] = {}
    gone: dict[str, int] = {}
    stayed: set[str] = set()
    status = DONE
    for record in wanted:
        if record["State"] not in LOADED:
            continue
        try:
            leaving[await start_unload(gpud, record["Id"], force=force)] = record["Id"]
        except GpudError as error:
            if error.code == "not-loaded":
                continue
            if error.code != "busy":
                raise
            output.error(error)
            stayed.add(record["Id"])
            status = REFUSED
    for one in await waiting.finish(gpud, leaving) if leaving else ():
        if one.done:
            gone[one.model] = sum(one.record.get("Unloaded", {}).values())
        else:
            output.note(f"gpudctl: {one.sentence('unloading')}")
            stayed.add(one.model)
            status = max(status, FAILED)
    return gone, stayed, status


def _quoted(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f'"{record["Id"]}"' for record in records]
