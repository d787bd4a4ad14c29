"""What records keep to themselves, how they compare, and what an engine's end is called."""

import pytest

from gpud.core import record
from gpud.core.facts import Endpoint, EngineSettings, Exit
from gpud.core.ports import Command
from gpud.core.record import Record


class Point(Record):
    x: int
    y: int = 2
    note: str = "-"


class Place(Record):
    x: int
    y: int = 2
    note: str = "-"


@pytest.mark.parametrize(
    ("shown", "secret"),
    [
        (EngineSettings(environment=(("HF_TOKEN", "s3cret"),)), "environment"),
        (Endpoint(key="s3cret"), "key"),
        (Command("gpud-x", "x", "custom", ("prog",), {"HF_TOKEN": "s3cret"}), "environment"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_secrets_are_not_in_the_text_of_a_record(shown: Record, secret: str) -> None:
    """Neither the value nor the field; every other field is."""
    text = repr(shown)
    assert "s3cret" not in text
    fields = [name for name in shown.__struct_fields__ if name != secret]
    assert text == f"{type(shown).__name__}({', '.join(f'{name}={getattr(shown, name)!r}' for name in fields)})"


def test_several_fields_may_be_left_out_of_a_text() -> None:
    """The others stay in their order."""
    assert record.repr_without(Point(1), "y") == "Point(x=1, note='-')"
    assert record.repr_without(Point(1), "x", "note") == "Point(y=2)"


def test_records_may_be_the_same_but_for_some_fields() -> None:
    """Of the others each counts, and so does the kind."""
    assert record.same_without(Point(1, note="a"), Point(1, note="b"), "note")
    assert record.same_without(Point(1, 3, "a"), Point(1, 4, "b"), "y", "note")
    assert not record.same_without(Point(1, 3, "a"), Point(1, 4, "b"), "note")
    assert record.same_without(Point(1), Point(1))
    assert not record.same_without(Point(1), Point(2))
    assert not record.same_without(Point(1), Place(1))


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (Exit(7, 0), "exited with status 0"),
        (Exit(7, 3), "exited with status 3"),
        (Exit(7, -9), "was ended by signal 9"),
        (Exit(7, None), "ended"),
        (Exit(7, -9, oom_killed=True), "was killed by the kernel for lack of memory"),
    ],
)
def test_how_a_process_ended_is_told_in_words(end: Exit, text: str) -> None:
    """What the kernel did for lack of memory comes before the signal with which it did it."""
    assert end.describe() == text
