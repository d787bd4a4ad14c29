"""``gpudctl resume``: takes the GPUs back after ``gpudctl yield``."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.output import Output
from gpud.cli.status import span_since

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Take the GPUs back that "gpudctl yield" gave away: pinned models come back, others are loaded again when
they are asked for."""

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
