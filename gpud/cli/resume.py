"""``gpudctl resume``: takes the GPUs back after ``gpudctl yield``."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.output import Output
from gpud.cli.status import span_since

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Take back the GPUs after "gpudctl yield". Pinned models are loaded again, other
models when they are requested."""

EXAMPLES = ("gpudctl resume",)


def add_arguments(parser: Parser) -> None:
    """It has no arguments of its own."""


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        given = (await gpud.overview())["Yielded"]
        await gpud.call("Resume", asks=True)
        if given:
            text = f"resumed: the GPUs were given away for {span_since(given['SinceUSec'])}"
        else:
            text = "the GPUs were not given away: nothing to resume"
        output.result(text, {"resumed": bool(given)})
        return 0

    return client.run(work, arguments.bus)
