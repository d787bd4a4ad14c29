"""What /proc says of a process; knows no session."""

from collections.abc import Iterator
from pathlib import Path

from gpud.core.facts import Process

ANCESTORS = 64
"""How many parents of a process are looked at, at most: a shell in a shell in a build in a shell is not deeper."""


def read(pid: int, name: str) -> str:
    """A file of the process, empty where there is none."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def look(pid: int) -> Process | None:
    """None for a process that is no more, or that cannot be seen."""
    name, _, rest = read(pid, "stat").partition("(")[2].rpartition(")")
    fields = rest.split()
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    parent, _, leader, tty = map(int, fields[1:5])
    name = "".join(letter for letter in name if letter.isprintable())
    return Process(pid, name, parent, leader, tty, int(fields[19]))


def ancestry(process: Process) -> Iterator[Process]:
    """The process, its parent, and so on."""
    for _ in range(ANCESTORS):
        yield process
        above = look(process.parent) if process.parent > 1 else None
        if above is None:
            return
        process = above


def uid_of(pid: int) -> int | None:
    """Whose rights a process has. The owner of its folder in /proc would be root's for some."""
    for line in read(pid, "status").splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[2])
    return None


def terminal_name(number: int) -> str:
    """As ``who`` calls a terminal, from the number of its device; empty for none, and for rarer kinds."""
    major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
    if 136 <= major <= 143:
        return f"pts/{minor + (major - 136) * 256}"
    return f"tty{minor}" if major == 4 and minor < 64 else ""
