"""How much one caller may ask of gpud, and how long its words may be; decides about nothing else."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from gpud.core.counts import plural
from gpud.core.errors import InvalidArguments, InvalidOption, LimitsExceeded
from gpud.core.facts import Priority
from gpud.core.record import Record
from gpud.dbus.wire import Variant

# Buckets are kept for so many senders; the one that was longest silent goes first. A unique name costs an attacker one
# connection, of which the bus gives 256 to each user.
MAX_BUCKETS = 1024

MAX_MODEL_CHARACTERS = 128
MAX_TEXT_CHARACTERS = 128
# Ten years: more is a mistake in the unit, and would not fit into every clock.
MAX_TIME_S = 10 * 366 * 86400.0
MAX_BUDGET_BYTES = 1 << 50
# More than any machine has; what is larger than this one is for the scheduler to refuse, with its numbers.
MAX_CLAIM_BYTES = 1 << 62


class CallerLimits(Record):
    """What one caller may have at a time.

    ``outstanding`` calls of one connection that are not answered yet (they wait for polkit, or for memory); ``holds``,
    ``claims`` and ``jobs`` of one user; ``polkit`` questions about one user in flight; ``calls_per_s`` of one
    connection in the long run, and ``burst`` at once.
    """

    outstanding: int = 64
    holds: int = 16
    claims: int = 16
    jobs: int = 16
    polkit: int = 8
    calls_per_s: float = 200.0
    burst: int = 500


class Meter:
    """Counts the calls of each connection: a bucket that fills with time, and how many are being answered."""

    def __init__(self, limits: CallerLimits) -> None:
        self._limits = limits
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._outstanding: dict[str, int] = {}

    @property
    def refusal(self) -> LimitsExceeded:
        """What a caller is told whose call was not admitted. It is the same for all, so that it costs nothing."""
        limits = self._limits
        return LimitsExceeded(
            f"too many calls from one connection: the limit is {limits.calls_per_s:g} a second "
            f"after a burst of {limits.burst}",
            hint="slow down, or follow the signals in place of asking again",
        )

    def admit(self, sender: str, now_s: float) -> bool:
        """Count one call. False: there have been too many."""
        limits = self._limits
        tokens, seen_s = self._buckets.get(sender, (float(limits.burst), now_s))
        tokens = min(float(limits.burst), tokens + (now_s - seen_s) * limits.calls_per_s)
        refused = tokens < 1.0
        self._buckets[sender] = (tokens if refused else tokens - 1.0, now_s)
        self._buckets.move_to_end(sender)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return not refused

    def begin(self, sender: str) -> None:
        """A call that takes time begins. Raises LimitsExceeded; otherwise :meth:`end` must follow."""
        count = self._outstanding.get(sender, 0)
        if count >= self._limits.outstanding:
            raise LimitsExceeded(
                f"{sender} waits for {plural(count, 'answer')} already, the limit is {self._limits.outstanding}",
                hint="wait for some of them first",
            )
        self._outstanding[sender] = count + 1

    def end(self, sender: str) -> None:
        count = self._outstanding.get(sender, 0) - 1
        if count > 0:
            self._outstanding[sender] = count
        else:
            self._outstanding.pop(sender, None)

    @property
    def outstanding(self) -> int:
        """How many senders wait for an answer."""
        return len(self._outstanding)

    def clear(self) -> None:
        """Forget the buckets: the bus that knew these names is gone. What is being answered will end by itself."""
        self._buckets.clear()


def checked_model(model: str, *, empty: str = "") -> str:
    """A model's name as it may be passed on. ``empty`` says what to do when there is none; "" allows it."""
    if empty and not model:
        raise InvalidArguments("the model's name is empty", hint=empty)
    if len(model) > MAX_MODEL_CHARACTERS:
        raise InvalidArguments(
            f"the model's name has {len(model)} characters, the limit is {MAX_MODEL_CHARACTERS}",
            hint='"gpudctl models" lists the names',
        )
    if not model.isprintable():
        raise InvalidArguments(
            f"the model's name {model!a} has characters that cannot be printed",
            hint='"gpudctl models" lists the names',
        )
    return model


def checked_text(name: str, text: str) -> str:
    """A text that everybody will read: bounded, on one line, printable."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidArguments(
            f"{name} has {len(text)} characters, the limit is {MAX_TEXT_CHARACTERS}", hint="say it in fewer words"
        )
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def checked_options(options: dict[str, Variant], allowed: Mapping[str, str]) -> dict[str, Any]:
    """The plain values of known options of the right type. Raises InvalidOption."""
    names = ", ".join(f'"{name}"' for name in allowed)
    for name, value in options.items():
        if name not in allowed:
            raise InvalidOption(f"there is no option {name[:64]!a}", hint=f"allowed are {names}")
        if value.signature != allowed[name]:
            raise InvalidOption(
                f'the option "{name}" has the type "{value.signature[:16]}"', hint=f'its type is "{allowed[name]}"'
            )
    return {name: value.value for name, value in options.items()}


def checked_seconds(name: str, usec: int) -> float:
    """A length of time that came in microseconds."""
    time_s = usec / 1_000_000
    if time_s > MAX_TIME_S:
        raise InvalidArguments(
            f"{name} is {time_s:.0f} s, the limit is {MAX_TIME_S:.0f} s", hint="give it in microseconds"
        )
    return time_s


def checked_priority(word: str) -> Priority:
    """A priority by its name. Raises InvalidOption."""
    known = {priority.name.lower(): priority for priority in Priority}
    if word not in known:
        raise InvalidOption(f'the option "priority" is {word[:64]!a}', hint=f"it can be {', '.join(known)}")
    return known[word]


def checked_gpu(name: str) -> str:
    """A GPU by its index or uuid; whether there is one is for the engine to know."""
    if len(name) > MAX_TEXT_CHARACTERS or not name.isprintable():
        raise InvalidOption(
            f'the option "gpu" is {name[:MAX_TEXT_CHARACTERS]!a}',
            hint='give an index or a uuid; "gpudctl vram" shows both',
        )
    return name


def checked_size(size_bytes: int) -> int:
    """So much memory as somebody could want."""
    if not 0 < size_bytes <= MAX_CLAIM_BYTES:
        raise InvalidArguments(
            f"a size of {size_bytes} bytes is not from 1 to {MAX_CLAIM_BYTES}", hint="say how many bytes are needed"
        )
    return size_bytes
