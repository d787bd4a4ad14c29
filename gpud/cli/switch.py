"""``gpudctl switch``: one model in place of those that are loaded, as the old swap scripts did it."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.output import Output
from gpud.cli.unload import LOADED

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Unload the loaded models that nobody holds, after their running requests have
finished, and load MODEL in their place. A plain load unloads only what it
needs to make room; use switch to unload the other models in any case."""

EXAMPLES = (
    "gpudctl switch qwen3-8b",
    "gpudctl switch --keep embedder qwen3-8b",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name or alias of a model")
    parser.add_argument(
        "--keep", metavar="MODEL", action="append", default=[], help="do not unload this model; may be repeated"
    )


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    return client.run(lambda gpud: switch(gpud, arguments, output), arguments.bus, start=True)


async def switch(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    from gpud.cli import jobs as waiting
    from gpud.cli.load import report, start, status_of, wait_for
    from gpud.core.errors import GpudError

    await gpud.subscribe()
    record, overview = await gpud.about(arguments.model)
    wanted = record["Id"]
    kept = {wanted}
    for name in arguments.keep:
        kept.add((await gpud.about(name))[0]["Id"])
    leaving: dict[int, str] = {}
    stayed: list[str] = []
    for record in overview["Models"]:
        if record["Id"] in kept or record["State"] not in LOADED:
            continue
        try:
            (job,) = await gpud.call("Unload", "s", record["Id"], asks=True)
            leaving[job] = record["Id"]
        except GpudError as error:
            if error.code not in ("busy", "not-loaded"):
                raise
            if error.code == "busy":
                stayed.append(record["Id"])
                output.note(f"gpudctl: {error.message}")
    for one in await waiting.finish(gpud, leaving) if leaving else ():
        if not one.done:
            stayed.append(one.model)
            output.note(f"gpudctl: {one.sentence('unloading')}")
    ended = await wait_for(gpud, {await start(gpud, wanted, {}): wanted}, output)
    after = {record["Id"]: record for record in await gpud.models_named([wanted])}
    done = all(one.done for one in ended)
    if output.wants_json:
        gone = [name for name in leaving.values() if name not in stayed]
        output.json({"model": wanted, "loaded": done, "unloaded": gone, "stayed": stayed})
        for one in ended:
            if not one.done:
                output.note(f"gpudctl: {one.sentence('loading')}")
    else:
        report(output, ended, after)
    return max(status_of(one, after.get(one.model, {})) for one in ended)
