"""``gpudctl queue``: who waits for memory, in the order in which they will be served."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser
from gpud.cli.output import Output, size, span, table, until
from gpud.cli.status import as_data, claimant, span_since

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Show the loads and claims that are waiting for memory, in the order in which
gpud will serve them, with what each waits for and until when. An entry marked
with * has waited so long that it has its turn: models in its way take no new
requests."""

EXAMPLES = (
    "gpudctl queue",
    "gpudctl queue --json | jq -r '.queue[].waits_for'",
)


def add_arguments(parser: Parser) -> None:
    """It has no arguments of its own."""


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    async def work(gpud: "Gpud") -> int:
        status = await gpud.overview()
        queue = status["Queue"]
        lines = rows(queue, status["Claims"], output) if queue else ["nobody waits for memory"]
        output.result("\n".join(lines), {"queue": as_data(queue)})
        return 0

    return client.run(work, arguments.bus)


def rows(queue: list[dict[str, Any]], claims: list[dict[str, Any]], output: Output) -> list[str]:
    head = ("", "WHO", "NEEDS", "PRIORITY", "FOR", "WAITS", "GIVES UP IN", "LOADS IN", "WAITS FOR")
    return table(
        output,
        head,
        [
            (
                (f"{one['Position']}{'*' if one['Overdue'] else ''}", "bold"),
                (one["Model"] or claimant(one["Claim"], claims), ""),
                (size(one["NeedBytes"]) if one["NeedBytes"] else "", ""),
                (one["Priority"], ""),
                (callers(one), ""),
                (span_since(one["SinceUSec"]), ""),
                (until(one["UntilUSec"]), ""),
                (span(one["LoadUSec"] / 1e6) if one["LoadUSec"] else "", ""),
                (one["WaitsFor"], ""),
            )
            for one in queue
        ],
    )


def callers(record: dict[str, Any]) -> str:
    """Who asked, and how often where that is more than once each."""
    named = ", ".join(record["Callers"])
    return f"{named} ({record['Requests']} requests)" if record["Requests"] > max(1, len(record["Callers"])) else named
