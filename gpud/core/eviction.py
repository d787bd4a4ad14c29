"""Which models are evicted when memory is needed. Decides by values alone, and must not log."""

from collections.abc import Iterable, Sequence

from gpud.core.facts import EvictionPolicy
from gpud.core.record import Record
from gpud.core.usage import Usage, unknown

HORIZON_S = 20.0
"""How far a chance of reuse looks. It is compared, not believed: short, so that twice as many requests are worth nearly
twice as much, however many they are."""

UPHEAVAL_S = 2.0
"""What a reload costs beyond its own time: it has others unloaded, waited for, and loaded again in their turn. Without
this, small models that are cheap to load are thrown out too lightly."""

WEIGHT_OF_PRIORITY = 1e9
"""One model of a higher priority weighs more than all of a lower one together."""

LEAST_LOSS_S = 1e-6
"""Nothing is quite worthless: of two sets that cost nothing, the one of fewer models goes."""

SHORTLIST = 32
"""Of very many candidates those are looked at closely that would go by their last use, and so many beside them: a
decision takes well under a millisecond then."""

EXACT = 16
TRIES = 600
"""So many candidates are searched for the very best set, in so many steps at most; the rest is left to the greedy
choice, which is rarely far off."""


class Candidate(Record):
    """A ready model that nobody holds, and the bytes that its unloading gives back on the device in question.

    ``reload_s`` is what loading it again takes, ``usage`` how it was used. ``busy``: it has to answer first.
    """

    model: str
    last_used_s: float
    bytes: int
    priority: int = 1
    reload_s: float = 0.0
    usage: Usage | None = None
    busy: bool = False


def loss(candidate: Candidate, now: float) -> float:
    """What is lost when it goes: the seconds of a reload and what that brings about, as likely as they are to be spent
    soon.
    """
    usage = candidate.usage
    if usage is None or usage.last_s is None:
        chance = unknown(now - candidate.last_used_s, HORIZON_S)
    else:
        chance = usage.chance(now, HORIZON_S)
    return (candidate.reload_s + UPHEAVAL_S) * chance


def choose(
    candidates: Iterable[Candidate],
    missing_bytes: int,
    *,
    policy: EvictionPolicy = EvictionPolicy.HYBRID,
    now: float = 0.0,
) -> Sequence[Candidate] | None:
    """Those whose bytes together cover what is missing, or None when all would not do.

    ``lru``: the least recently used, one after the other. ``priority``: the same, but a lower priority always goes
    before a higher one. ``hybrid``: a lower priority first, and within that the set with which the least is lost.
    Nobody goes who turns out not to be needed: a small old model does not have to when a larger one has to anyway.
    """
    if missing_bytes <= 0:
        return ()
    usable = [candidate for candidate in candidates if candidate.bytes > 0]
    if sum(candidate.bytes for candidate in usable) < missing_bytes:
        return None
    usable.sort(key=lambda c: c.last_used_s)
    if policy is not EvictionPolicy.LRU:
        usable.sort(key=lambda c: c.priority)
    if policy is not EvictionPolicy.HYBRID:
        return _spare(_until_covered(usable, missing_bytes), missing_bytes)
    return _least_loss(_shortlist(usable, missing_bytes), missing_bytes, now)


def _until_covered(ordered: Iterable[Candidate], missing_bytes: int) -> list[Candidate]:
    taken: list[Candidate] = []
    covered = 0
    for candidate in ordered:
        if covered >= missing_bytes:
            break
        taken.append(candidate)
        covered += candidate.bytes
    return taken


def _spare(victims: Sequence[Candidate], missing_bytes: int) -> Sequence[Candidate]:
    """Without those that are not needed; who would go last is spared first."""
    needed: list[Candidate] = []
    over = sum(victim.bytes for victim in victims) - missing_bytes
    for victim in reversed(victims):
        if victim.bytes <= over:
            over -= victim.bytes
        else:
            needed.append(victim)
    return tuple(reversed(needed))


def _shortlist(ordered: Sequence[Candidate], missing_bytes: int) -> Sequence[Candidate]:
    """No priority that does not have to go, and of very many not all: those that cover it, and some more."""
    covered, count = 0, 0
    for candidate in ordered:
        covered += candidate.bytes
        count += 1
        if covered >= missing_bytes:
            break
    highest = ordered[count - 1].priority
    return [c for c in ordered[: count + SHORTLIST] if c.priority <= highest]


def _least_loss(candidates: Sequence[Candidate], missing_bytes: int, now: float) -> Sequence[Candidate]:
    """The set that covers the missing bytes with the least loss."""
    costs = {c.model: max(LEAST_LOSS_S, loss(c, now)) * WEIGHT_OF_PRIORITY**c.priority for c in candidates}
    ordered = sorted(candidates, key=lambda c: (costs[c.model] / c.bytes, c.last_used_s, c.model))
    greedy = _until_covered(ordered, missing_bytes)
    greedy.sort(key=lambda c: costs[c.model])
    best = _spare(greedy, missing_bytes)
    least = sum(costs[c.model] for c in best)
    alone = [c for c in ordered if c.bytes >= missing_bytes]
    if alone:
        cheapest = min(alone, key=lambda c: costs[c.model])
        if costs[cheapest.model] < least:
            best, least = (cheapest,), costs[cheapest.model]
    found = _search(ordered[:EXACT], costs, missing_bytes, least)
    # Beside one that costs very much, another's cost is lost in the rounding, and it may be there in vain.
    return _spare(sorted(found, key=lambda c: costs[c.model]), missing_bytes) if found else best


def _search(
    ordered: Sequence[Candidate], costs: dict[str, float], missing_bytes: int, least: float
) -> Sequence[Candidate] | None:
    """A set that costs less than ``least``, the best there is among these, or None. They come by cost per byte: what is
    still missing costs at least as much a byte as the next one.
    """
    rest = [0] * (len(ordered) + 1)
    for position in range(len(ordered) - 1, -1, -1):
        rest[position] = rest[position + 1] + ordered[position].bytes
    found: tuple[Candidate, ...] | None = None
    open_ends: list[tuple[int, int, float, tuple[Candidate, ...]]] = [(0, missing_bytes, 0.0, ())]
    for _ in range(TRIES):
        if not open_ends:
            break
        position, missing, cost, taken = open_ends.pop()
        if rest[position] < missing:
            continue
        candidate = ordered[position]
        price = costs[candidate.model]
        if cost + price / candidate.bytes * missing >= least * (1 - 1e-12):
            continue
        open_ends.append((position + 1, missing, cost, taken))
        if candidate.bytes < missing:
            open_ends.append((position + 1, missing - candidate.bytes, cost + price, (*taken, candidate)))
        elif cost + price < least * (1 - 1e-12):
            found, least = (*taken, candidate), cost + price
    return found
