"""``gpudctl version``: what is installed, and what runs."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud import __version__
from gpud.cli.arguments import Parser
from gpud.cli.output import Output

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Show the version of gpudctl. With --daemon, also show that of the running gpud,
which stays the old one after an update until gpud is restarted."""

EXAMPLES = ("gpudctl version", "gpudctl version --daemon")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--daemon", action="store_true", help="also ask the running gpud")


def run(arguments: Namespace, output: Output) -> int:
    if not arguments.daemon:
        output.result(f"gpudctl {__version__}", {"gpudctl": __version__})
        return 0
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        daemon = (await gpud.overview())["Version"]
        older = "" if daemon == __version__ else "; restart gpud to run the installed one"
        text = f"gpudctl {__version__}\ngpud {daemon} (running, on the {gpud.bus_name}){older}"
        output.result(text, {"gpudctl": __version__, "gpud": daemon, "bus": gpud.kind})
        return 0

    return client.run(work, arguments.bus)
