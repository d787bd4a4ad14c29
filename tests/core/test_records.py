"""What records keep to themselves, how they compare, what is left unsaid in them, what an engine's end is called."""

import importlib
import pkgutil
from collections.abc import Iterator

import msgspec
import pytest

import gpud.core
from gpud.core import record
from gpud.core.estimate.architectures import Cache
from gpud.core.facts import (
    BudgetLimits,
    Endpoint,
    EngineSettings,
    EvictionPolicy,
    Exit,
    LoadsMeanwhile,
    Priority,
    State,
)
from gpud.core.keys import Right
from gpud.core.plan import ALL_LAYERS
from gpud.core.ports import Command
from gpud.core.quote import Source
from gpud.core.record import Record, Struct
from gpud.core.usage import Usage

UNSAID: dict[str, dict[str, object]] = {
    # What every configuration means that does not say otherwise; docs/configuration.md has the same.
    "StopTimes": {"drain_s": 300.0, "term_s": 2.0, "second_term_s": 2.0},
    "Model": {
        "idle_timeout_s": 300.0,
        "priority": Priority.NORMAL,
        "load_timeout_s": 300.0,
    },
    "QueueLimits": {"size": 10, "timeout_s": 300.0, "turn_s": 10.0, "aging_s": 60.0},
    "EvictionLimits": {"policy": EvictionPolicy.HYBRID, "below_percent": 80.0},
    "SessionLimits": {"unload_on_exit": True, "grace_s": 5.0},
    "Limits": {
        "gpu": BudgetLimits(reserve_bytes=256 << 20),
        "host": BudgetLimits(reserve_bytes=1 << 30),
        "backoff_first_s": 5.0,
        "backoff_max_s": 60.0,
        "backoff_attempts": 5,
        "healthy_after_s": 30.0,
        "memory_wait_s": 10.0,
        "shutdown_drain_s": 20.0,
        "watch_s": 10.0,
        "alert_percent": 90.0,
        "loads_during_game": LoadsMeanwhile.WAIT,
        "loads_without_gpu": LoadsMeanwhile.REFUSE,
    },
    "ApiKey": {"allow": ("*",), "may": frozenset((Right.USE,))},
    # What llama-server does that is told nothing.
    "Plan": {
        "batch": 2048,
        "micro_batch": 512,
        "type_k": "f16",
        "type_v": "f16",
        "flash_attention": "auto",
        "layers": ALL_LAYERS,
        "kv_on_gpu": True,
        "split_mode": "layer",
    },
    # A wish is an ordinary one, lets idle models go, and is the first of whoever wishes.
    "LoadOptions": {"evict": True},
    "ClaimAsked": {"priority": Priority.NORMAL},
    "ClaimStatus": {"priority": Priority.NORMAL},
    "Candidate": {"priority": Priority.NORMAL},
    "Job": {"evict": True},
    "Wish": {"may_evict": True, "less": "ask for less, or raise gpu.budget"},
    "Ticket": {"turn": 1},
    "WokeUp": {"restore": True},
    "Notice": {"level": "info"},
    "Instance": {"state": State.COLD, "growth": 1.0},
    # A model is one file, is there, completes texts, and is built as most are.
    "ModelFile": {"parts": 1},
    "Found": {"parts": 1, "purpose": "completion"},
    "Entry": {"present": True},
    "Offer": {"source": Source.GUESS},
    "Rules": {"cache": Cache.ATTENTION, "ties_output": True, "flash_attention": True, "widths": 4.0},
    "Work": {"gated": True},
}
"""What is so where nobody says anything, and is not nothing."""


FITTED = "gpud.core.estimate.compute"
"""Of its numbers none is nothing; what the formula says with them is kept in ``estimates.json``."""


def records() -> Iterator[type[Struct]]:
    """All that the core has."""
    for module in pkgutil.walk_packages(gpud.core.__path__, "gpud.core."):
        for one in vars(importlib.import_module(module.name)).values():
            if isinstance(one, type) and issubclass(one, Struct) and one.__module__ == module.name != FITTED:
                yield one


def is_nothing(value: object) -> bool:
    """Empty, zero, no or unknown; of a record, that nothing is said in it; of a history, that it has not begun."""
    if isinstance(value, Usage):
        return value.count == 0
    return value == type(value)() if isinstance(value, Struct) else not value


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


@pytest.mark.parametrize("kind", [*records()], ids=lambda kind: kind.__name__)
def test_what_is_left_unsaid_is_nothing(kind: type[Struct]) -> None:
    """Empty, zero, no, or unknown; but for what people and engines take for granted, which is as they know it."""
    said = {}
    for one in msgspec.structs.fields(kind):
        value = one.default_factory() if callable(one.default_factory) else one.default
        if value is not msgspec.NODEFAULT and not is_nothing(value):
            said[one.name] = value
    assert said == UNSAID.get(kind.__name__, {})


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
