"""The figures as a table in Markdown, and the place in a document where it stands."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.peers.measures import Figure

BEGIN = "<!-- figures of bench.peers -->"
END = "<!-- end of the figures -->"

BUSY = 3.0
"""From this load average on, others have a hand in what is measured."""


class NoPlace(RuntimeError):
    """The document has no place for the figures."""


def cell(figure: Figure, arm: str) -> str:
    """The median, and between which values it lies."""
    if arm in figure.words:
        return figure.words[arm]
    values = figure.values.get(arm)
    if not values:
        return "–"
    places = figure.places
    middle = f"{statistics.median(values):,.{places}f} {figure.unit}"
    spread = f"{min(values):,.{places}f} to {max(values):,.{places}f}"
    return middle if len(values) == 1 else f"{middle} ({spread})"


def table(figures: Sequence[Figure], arms: Sequence[str]) -> str:
    """What an arm is measured against comes first; below it stands its own time, not what it adds."""
    lines = [f"| | {' | '.join(arms)} |", "|---|" + "---|" * len(arms)]
    for figure in figures:
        cells = [cell(figure, arm) for arm in arms]
        if "added" in figure.what and figure.values.get(arms[0]):
            cells[0] += " in all"
        lines.append(f"| {figure.what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def note(versions: Mapping[str, str], when: str, machine: str, load: Sequence[float]) -> str:
    """With what, when and where the figures were taken."""
    with_what = ", ".join(f"{name} {version}" for name, version in versions.items())
    said = f"Taken on {when} with {with_what}; {machine}; load average {load[0]:.1f} before and {load[1]:.1f} after."
    # Two processors full of what is measured come to 4 or so at the end: only the beginning tells of others.
    if load[0] >= BUSY:
        said += " Others used the machine at the same time: only what stands beside each other can be compared."
    return said


def write(path: Path, text: str) -> None:
    """Put the figures where the document has a place for them, and touch nothing else."""
    old = path.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoPlace(f"{path.name} has no place for the figures: they go between the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
