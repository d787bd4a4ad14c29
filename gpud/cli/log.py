"""``gpudctl log``: journalctl with the right fields. It becomes journalctl, which does all the rest."""

import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from gpud.cli.arguments import Parser, whole
from gpud.cli.output import Output
from gpud.core.errors import GpudError

DESCRIPTION = """\
Show the messages of gpud and its engines from the journal. With MODEL, show
only the messages about that model, including the output of its engine. gpud
need not be running."""

EXAMPLES = (
    "gpudctl log -n 50",
    "gpudctl log -f qwen3-8b",
    'gpudctl log --since "1 hour ago" --explain',
    "journalctl -u gpud GPUD_MODEL=qwen3-8b     # what the second example runs",
)

JOURNALS = ("/run/log/journal", "/var/log/journal")


class NoJournal(GpudError):
    code = "no-journal"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="only messages about this model")
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new messages")
    parser.add_argument("-n", "--lines", metavar="N", type=whole(0, 10**9), help="only the last N messages")
    parser.add_argument(
        "--since", metavar="TIME", help='only messages from then on: "1 hour ago", "today", "2026-01-31 12:00"'
    )
    parser.add_argument("-x", "--explain", action="store_true", help="add explanations from the message catalog")


def run(arguments: Namespace, output: Output) -> int:
    journalctl = shutil.which("journalctl")
    if journalctl is None:
        raise NoJournal(
            "there is no journal here: journalctl is not installed",
            hint="gpud then logs to its standard error: look where that goes",
        )
    if not any(any(Path(place).glob("**/*.journal*")) for place in JOURNALS):
        raise NoJournal(
            f"there is no journal here: neither {' nor '.join(JOURNALS)} has one",
            hint="gpud then logs to its standard error: look where that goes",
        )
    output.flush()
    os.execv(journalctl, command(arguments, os.environ))  # noqa: S606 -- journalctl takes over, with its pager


def command(arguments: Namespace, environment: Mapping[str, str]) -> list[str]:
    """The command line of journalctl."""
    is_user = (arguments.bus or environment.get("GPUD_BUS")) == "user"
    words = ["journalctl", *(["--user"] if is_user else []), "--unit=gpud"]
    if arguments.model:
        words.append(f"GPUD_MODEL={arguments.model}")
    if arguments.follow:
        words.append("--follow")
    if arguments.lines is not None:
        words.append(f"--lines={arguments.lines}")
    if arguments.since:
        words.append(f"--since={arguments.since}")
    if arguments.explain:
        words.append("--catalog")
    if arguments.json:
        words.append("--output=json")
    if arguments.no_color:
        words.append("--no-pager")
    return words
