"""``gpudctl cancel``: gives up a load, an unload or a download that is going on."""

from argparse import Namespace
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser, whole
from gpud.cli.output import Output

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Cancel a load, an unload or a download. "gpudctl status" shows the jobs and
their numbers. Canceling a job of another user needs permission."""

EXAMPLES = ("gpudctl cancel 7",)


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "job", metavar="JOB", type=whole(0, (1 << 32) - 1), help='number of the job, from "gpudctl status"'
    )


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        await gpud.call("CancelJob", "u", arguments.job, asks=True)
        output.result(f"canceled job {arguments.job}", {"job": arguments.job, "canceled": True})
        return 0

    return client.run(work, arguments.bus)
