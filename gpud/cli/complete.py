"""``gpudctl _complete``: words for the completion of shells, one a line. Silent whatever is wrong."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.output import Output
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = "Words for the completion of shells, one a line. Nothing is printed where gpud does not run."

EXAMPLES = ("gpudctl _complete models",)

BOUND_S = 1.0
"""Somebody has pressed a key and waits: better no words than late ones."""

KINDS = ("models", "loaded", "jobs", "keys")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("kind", choices=KINDS, help="what to list")


def run(arguments: Namespace, output: Output) -> int:
    try:
        found = _keys() if arguments.kind == "keys" else _of_daemon(arguments)
    except (GpudError, TimeoutError, OSError):
        return 0
    if found:
        output.text("\n".join(found))
    return 0


def _of_daemon(arguments: Namespace) -> list[str]:
    import asyncio

    from gpud.cli import client
    from gpud.cli.unload import LOADED

    async def work(gpud: "Gpud") -> list[str]:
        async with asyncio.timeout(BOUND_S):
            status = await gpud.status()
        if arguments.kind == "jobs":
            return [str(job["Id"]) for job in status.get("Jobs", ())]
        wanted = [m for m in status["Models"] if arguments.kind == "models" or m["State"] in LOADED]
        return [name for model in wanted for name in (model["Id"], *model.get("Aliases", ()))]

    return client.run(work, arguments.bus)


def _keys() -> list[str]:
    """The top of the configuration, and what is in each section that is the same for everybody."""
    from gpud.config.schema import ROOT
    from gpud.config.sections import Section

    found = []
    for key in ROOT.keys:
        found.append(key.name)
        if isinstance(key.kind, Section) and key.name not in ("defaults", "stop"):
            found += [f"{key.name}.{inner.name}" for inner in key.kind.keys]
    return found
