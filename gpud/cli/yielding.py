"""``gpudctl yield``: gives the GPUs away, and returns when they are empty."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser, duration
from gpud.cli.output import Output, mib, span
from gpud.cli.unload import LOADED
from gpud.core.counts import plural
from gpud.core.errors import Canceled

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Yield the GPUs to other programs: unload the models on them once their running
requests have finished, and load nothing on them until "gpudctl resume" or
the end of --for. Requests for models are refused meanwhile. Memory that
programs have claimed stays theirs. The command returns when no model is on a
GPU any longer; Ctrl-C ends the wait, not the yield."""

EXAMPLES = (
    "gpudctl yield",
    'gpudctl yield --for 2h --why "a game"',
    "gpudctl yield && ./game; gpudctl resume",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--for", dest="how_long", metavar="TIME", type=duration, help="take back the GPUs after TIME (90s, 10m, 2h)"
    )
    parser.add_argument("--why", metavar="TEXT", default="", help="reason that others see")
    parser.add_argument("--no-wait", action="store_true", help="return at once; the unloading continues")


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    return client.run(lambda gpud: give_away(gpud, arguments, output), arguments.bus)


async def give_away(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    import asyncio

    how_long = arguments.how_long or 0.0
    await gpud.subscribe()
    status = await gpud.overview()
    # Where there is no GPU, the machine's own memory is what is given away.
    given = {gpu["Uuid"] for gpu in status["Gpus"] if gpu["Uuid"] != "host"} or {"host"}
    before = holding(status["Models"], given)
    await gpud.call("Yield", "ts", round(how_long * 1e6), arguments.why[:128], asks=True)
    left = before
    try:
        while left and not arguments.no_wait:
            left = holding((await gpud.overview())["Models"], given)
            if left:
                await _change(gpud)
    except asyncio.CancelledError:
        output.error(Canceled("interrupted: the GPUs are given away, and models are still being unloaded"))
        raise
    until = f"for {span(how_long)}" if how_long else 'until "gpudctl resume"'
    gone = [record for name, record in before.items() if name not in left]
    freed = sum(int(record["VramBytes"] or record["NeedBytes"]) for record in gone)
    text = f"the GPUs are given away {until}"
    if gone:
        text += f"; unloaded {plural(len(gone), 'model')}, freed {mib(freed)}"
    elif left:
        text += f"; {plural(len(left), 'model')} will be unloaded"
    data = {
        "yielded": True,
        "for_usec": round(how_long * 1e6),
        "unloaded": [record["Id"] for record in gone],
        "left": list(left),
        "freed_bytes": freed,
    }
    output.result(text, data)
    return 0


def holding(models: list[dict[str, Any]], devices: set[str]) -> dict[str, dict[str, Any]]:
    """The models that hold memory of one of the devices, or are about to."""
    return {record["Id"]: record for record in models if record["State"] in LOADED and devices & set(record["Devices"])}


async def _change(gpud: "Gpud") -> None:
    """Return when a model may hold less than before."""
    from gpud.cli.client import asks_for_models, changed_models

    while True:
        signal = await gpud.next_signal()
        if signal.member == "ModelStateChanged" or asks_for_models(signal) or changed_models(signal) is not None:
            return
