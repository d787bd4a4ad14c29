"""One start of an engine, and what it was made with. Starts nothing."""

from gpud.core.facts import GpuSample, Model
from gpud.core.instance import as_offered
from gpud.core.ports import Backend, Runner
from gpud.core.quote import Estimate, Offer
from gpud.core.record import Record, Struct, replace


class Start(Struct):
    """One start of an engine, and the settings it was made with.

    ``context`` and ``layers`` are those of this start alone, where it has others than are configured. ``counted`` is
    what the engine itself said that it takes, ``build`` which one it is, ``gpus`` where it was put.
    """

    generation: int
    unit: str
    engine: str
    fingerprint: str = ""
    context: int | None = None
    layers: int | None = None
    counted: Estimate | None = None
    build: str = ""
    gpus: tuple[GpuSample, ...] = ()


class Running(Record):
    """A start that has become ready."""

    start: Start
    runner: Runner
    backend: Backend


def is_launched_alike(before: Model | None, after: Model | None) -> bool:
    """What it is called besides and who goes first is nothing to its engine."""
    if before is None or after is None:
        return before is after
    return before == replace(after, aliases=before.aliases, priority=before.priority)


def as_started(model: Model, engine: str, context: int | None, layers: int | None) -> Model | None:
    """The model by this engine, with what one start had for itself; None when it is no longer by this engine."""
    offer = Offer((), context=context, layers=layers, engine=engine)
    found = as_offered(model, offer, None)
    return found if found.engine == engine else None
