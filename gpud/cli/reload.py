"""``gpudctl reload``: has the configuration read again."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.output import Output
from gpud.core.counts import plural

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Reload the configuration. If anything in it is wrong, the old one stays in
effect as a whole. Models whose configuration is unchanged are not touched. To
check the files without the daemon, use "gpudctl config check"."""

EXAMPLES = ("gpudctl reload", "gpudctl config check && gpudctl reload")


def add_arguments(parser: Parser) -> None:
    """It takes no arguments of its own."""


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        await gpud.call("Reload", asks=True)
        names = [record["Id"] for record in await gpud.models()]
        output.result(f"reloaded: {plural(len(names), 'model')}", {"reloaded": True, "models": names})
        return 0

    return client.run(work, arguments.bus)
