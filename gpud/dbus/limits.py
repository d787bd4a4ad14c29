"""How much one caller may ask of gpud, and how long its words may be; decides about nothing else."""

from collections import OrderedDict
from dataclasses import dataclass

from gpud.core.errors import InvalidArguments, LimitsExceeded

# Buckets are kept for so many senders; the one that was longest silent goes first. A unique name costs an attacker one
# connection, of which the bus gives 256 to each user.
MAX_BUCKETS = 1024

MAX_MODEL_CHARACTERS = 128
MAX_TEXT_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one caller may have at a time.

    ``outstanding`` calls of one connection that are not answered yet (they wait for polkit); ``holds`` and ``jobs`` of
    one user; ``polkit`` questions about one user in flight; ``calls_per_s`` of one connection in the long run, and
    ``burst`` at once.
    """

    outstanding: int = 64
    holds: int = 16
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
                f"{sender} waits for {count} answers already, the limit is {self._limits.outstanding}",
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
