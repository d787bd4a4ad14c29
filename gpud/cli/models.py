"""``gpudctl models``: the names of the models, one a line, for people and for shell loops."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.output import Output
from gpud.cli.unload import LOADED

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
List the names of the models that gpud knows, one a line, or of those alone that are loaded. "gpudctl status" says more
about each of them."""

EXAMPLES = (
    "gpudctl models",
    "gpudctl models --aliases",
    "gpudctl models --loaded | xargs -n 1 gpudctl log -n 5",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--loaded", action="store_true", help="only those that are loaded, being loaded or unloaded")
    parser.add_argument("--aliases", action="store_true", help="their aliases too, each on a line of its own")


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        records = [one for one in await gpud.models() if not arguments.loaded or one["State"] in LOADED]
        names = [name for one in records for name in (one["Id"], *(one["Aliases"] if arguments.aliases else ()))]
        data = [{"id": one["Id"], "aliases": one["Aliases"], "state": one["State"]} for one in records]
        output.result("\n".join(names), {"models": data})
        return 0

    return client.run(work, arguments.bus)
