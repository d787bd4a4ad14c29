"""How command lines are read and how help looks; knows no command."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from gpud.cli.exits import Usage

GLOBAL_OPTIONS = ("--user", "--system", "--json", "--no-color")

_GLOBAL_HELP = """\
  --user        connect to your own gpud (also: GPUD_BUS=user)
  --system      connect to the gpud of this machine (also: GPUD_BUS=system)
                default: the machine's gpud, or yours if only that one runs
  --json        print JSON instead of text
  --no-color    print no colors, even on a terminal (also: NO_COLOR=1)
  -h, --help    show this help"""

_STATUSES = """\
Exit status: 0 success, 1 failure, 2 invalid command line, 3 gpud is not
running, 4 refused (no permission, held by others, no memory), 130 interrupted."""


class _HelpWanted(Exception):
    """Raised in place of printing the help and ending the process."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class Parser(argparse.ArgumentParser):
    """Raises Usage in place of ending the process, and knows the options that every command has."""

    def __init__(self, prog: str, description: str = "", examples: Sequence[str] = (), **others: Any) -> None:
        epilog = "Examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
            **others,
        )
        everywhere = self.add_argument_group("common options")
        which = everywhere.add_mutually_exclusive_group()
        which.add_argument("--user", dest="bus", action="store_const", const="user", help="connect to your own gpud")
        which.add_argument(
            "--system", dest="bus", action="store_const", const="system", help="connect to the gpud of this machine"
        )
        everywhere.add_argument("--json", action="store_true", help="print JSON instead of text")
        everywhere.add_argument("--no-color", action="store_true", help="print no colors, even on a terminal")
        everywhere.add_argument("-h", "--help", action=_Help, help="show this help")

    def parse(self, words: Sequence[str]) -> argparse.Namespace | str:
        """What was asked for, or the help's text where that was. Raises Usage."""
        try:
            if any(action.nargs == argparse.REMAINDER for action in self._actions):
                return self.parse_args(list(words))
            # Options may stand anywhere, also between the names of models.
            return self.parse_intermixed_args(list(words))
        except _HelpWanted as wanted:
            return wanted.text

    def error(self, message: str) -> Any:
        command = self.prog.partition(" ")[2]
        raise Usage(f"{command}: {message}", hint=f'see "{self.prog} --help"')


class _Help(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        raise _HelpWanted(parser.format_help().rstrip("\n"))


def overview(commands: Sequence[tuple[str, str]]) -> str:
    """The help of gpudctl itself."""
    width = max(len(name) for name, _ in commands)
    lines = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in commands)
    return (
        "usage: gpudctl [options] [command] [arguments]\n\n"
        "Query and control gpud, the daemon that owns the GPUs of this machine.\n\n"
        f"Commands (default: status):\n{lines}\n\n"
        f"Options, before or after the command:\n{_GLOBAL_HELP}\n\n"
        '"gpudctl COMMAND --help" explains a command; see also gpudctl(1).\n'
        f"{_STATUSES}"
    )


# Values --------------------------------------------------------------------------------------------------------------

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float:
    """Seconds: ``90``, ``90s``, ``10m``, ``1h30m``; ``never`` is 0."""
    import re

    if text.strip().lower() == "never":
        return 0.0
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d)?", text.strip().lower())
    whole = "".join(number + unit for number, unit in parts)
    if (
        not parts
        or whole != re.sub(r"\s", "", text.strip().lower())
        or (len(parts) > 1 and not all(u for _, u in parts))
    ):
        raise argparse.ArgumentTypeError(f'"{text}" is not a duration; write 90, 90s, 10m, 1h30m or never')
    return float(sum(float(number) * _UNITS[unit or "s"] for number, unit in parts))


def patience(text: str) -> float:
    """How long to wait: a duration, of which 0 means not at all, and not for ever."""
    if text.strip().lower() == "never":
        raise argparse.ArgumentTypeError('"never" is not a time to wait; write 0 for no wait, or leave the option out')
    return duration(text)


_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def size(text: str) -> int:
    """Bytes, as gpud.yaml writes them: ``8GiB``, ``8G`` (the same), ``500MB`` (decimal), or a number of bytes."""
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?b)?)", text.strip().lower())
    if match is None or (not match[2] and "." in match[1]):
        raise argparse.ArgumentTypeError(f'"{text}" is not a size; write 8GiB, 1.5G, 500MB or a number of bytes')
    unit_bytes: int = (1000 if match[3] == "b" else 1024) ** _POWERS[match[2]]
    size_bytes = round(float(match[1]) * unit_bytes)
    if not 0 < size_bytes <= MOST_BYTES:
        raise argparse.ArgumentTypeError(f'"{text}" is not a size from 1 to {MOST_BYTES} bytes')
    return size_bytes


MOST_BYTES = 1 << 62

PRIORITIES = ("low", "normal", "high", "critical")


def some_path(text: str) -> str:
    """The name of a folder or a file. An empty one is what a script makes of a variable that is not set."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("it is empty; a folder or a file is expected")
    return text


def whole(least: int, most: int) -> Callable[[str], int]:
    """A reader of whole numbers within bounds."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f'"{text}" is not a whole number from {least} to {most}')
        return number

    return read
