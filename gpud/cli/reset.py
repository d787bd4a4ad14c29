"""``gpudctl reset``: has a model's failures forgotten."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.exits import FAILED, BusError, Usage
from gpud.cli.output import Output
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Clear the failures of a model whose engine crashed or could not be started: the
model becomes unloaded, its attempts count from zero, and the next request or
load tries it again. A loaded model is not affected."""

EXAMPLES = ("gpudctl reset big", "gpudctl reset big && gpudctl load --context 4096 big")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name or alias of a model")


def run(arguments: Namespace, output: Output) -> int:
    if not arguments.model:
        raise Usage("reset: the model's name is empty", hint='name a model; "gpudctl models" lists them')
    from gpud.cli import client

    return client.run(lambda gpud: reset(gpud, arguments.model, output), arguments.bus)


async def reset(gpud: "Gpud", model: str, output: Output) -> int:
    from gpud.cli import client
    from gpud.cli import jobs as waiting

    await gpud.subscribe()
    record = client.named((await gpud.overview())["Models"], model)
    if record is not None and record["State"] not in ("failed", "unloaded"):
        raise GpudError(
            f'cannot reset "{model}": it is {record["State"]}, not failed', hint=f'"gpudctl unload {model}" unloads it'
        )
    attempts = record.get("Attempts", 0) if record is not None else 0
    try:
        (job,) = await gpud.call("Unload", "s", model, asks=True)
    except BusError as error:
        if error.code != "not-loaded":
            raise
        output.result(f'"{model}" had not failed: nothing to reset', {"model": model, "reset": False})
        return 0
    (ended,) = await waiting.finish(gpud, {int(job): model})
    if not ended.done:
        output.note(f"gpudctl: {ended.sentence('resetting')}")
        return FAILED
    failures = f" after {attempts} failed attempts" if attempts > 1 else ""
    output.result(f'reset "{model}"{failures}: the next request tries it again', {"model": ended.model, "reset": True})
    return 0
