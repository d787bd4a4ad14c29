"""``gpudctl _complete``: words for the completion of shells, one a line. Silent whatever is wrong."""

from argparse import Namespace
from typing import Any

from gpud.cli.arguments import Parser
from gpud.cli.output import Output
from gpud.cli.unload import LOADED
from gpud.core.errors import GpudError

DESCRIPTION = "Print words for shell completion, one per line; nothing if gpud is not running."

EXAMPLES = ("gpudctl _complete models",)

BOUND_S = 1.0
"""Somebody has pressed a key and waits: better no words than late ones."""

KINDS = ("models", "loaded", "restartable", "jobs", "gpus", "keys", "engines")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("kind", choices=KINDS, help="what to list")


def run(arguments: Namespace, output: Output) -> int:
    try:
        here = {"keys": _keys, "engines": _engines}.get(arguments.kind)
        found = here() if here is not None else _of_daemon(arguments)
    except (GpudError, TimeoutError, OSError):
        return 0
    if found:
        output.text("\n".join(found))
    return 0


def _of_daemon(arguments: Namespace) -> list[str]:
    import asyncio
    import logging

    logging.disable(logging.CRITICAL)
    status = asyncio.run(_status(arguments.bus))
    if arguments.kind == "jobs":
        return [str(job["Id"]) for job in status["Jobs"]]
    if arguments.kind == "gpus":
        return [str(gpu["Index"]) for gpu in status["Gpus"] if gpu["Uuid"] != "host"] + ["host"]
    if arguments.kind == "restartable":
        busy = sorted({model["Backend"] for model in status["Models"] if model["State"] in LOADED})
        return [name for model in status["Models"] for name in (model["Id"], *model["Aliases"])] + busy
    wanted = [m for m in status["Models"] if arguments.kind == "models" or m["State"] in LOADED]
    return [name for model in wanted for name in (model["Id"], *model["Aliases"])]


async def _status(bus: str) -> dict[str, Any]:
    import asyncio

    from gpud.cli import client

    async with asyncio.timeout(BOUND_S):
        gpud = await client.connect(bus)
        try:
            return await gpud.status()
        finally:
            gpud.close()


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


def _engines() -> list[str]:
    """The engines that gpud has itself: packages that bring others are not asked, which takes too long."""
    from gpud.backends import BACKENDS

    return list(BACKENDS)
