"""Makes the scheduler's limits of the sections that speak of memory and waiting, and checks that they agree."""

from gpud.config.given import Given
from gpud.config.kinds import Percent, Reading, percent_text
from gpud.core.facts import (
    BudgetLimits,
    EvictionLimits,
    EvictionPolicy,
    Limits,
    LoadsMeanwhile,
    QueueLimits,
    SessionLimits,
)


def limits(top: Given, reading: Reading) -> Limits:
    """What the whole configuration says of memory; a contradiction is noted and the values are as they were given."""
    gpu = top.section("gpu")
    restart = top.section("restart")
    if not restart.is_refused("first", "max") and restart["max"] < restart["first"]:
        reading.wrong(
            restart.given("max", "first").where,
            "restart.max",
            f"{restart['max']:g} s: is less than restart.first, {restart['first']:g} s; raise it",
        )
    busy_mib = gpu["external_busy_mib"]
    plain = {
        name: value
        for section in (top, restart, gpu, top.section("idle"))
        for name, value in section.fields(Limits).items()
    }
    made = {
        "gpu": _budget(gpu["budget"], gpu["reserve"]),
        "host": _budget(gpu["host_budget"], gpu["host_reserve"]),
        "queue": _queue(top.section("queue"), reading),
        "eviction": _eviction(top.section("eviction"), reading),
        "sessions": SessionLimits(**top.section("sessions").fields()),
        "alert_percent": gpu["alert_percent"] or None,
        "external_busy_bytes": None if busy_mib is None else busy_mib << 20,
        "loads_during_game": LoadsMeanwhile(top.section("give_way")["loads"]),
        "loads_without_gpu": LoadsMeanwhile(top.section("suspend")["without_gpu"]),
    }
    return Limits(**(plain | made))


def _budget(budget: int | Percent | None, reserve: int) -> BudgetLimits:
    if isinstance(budget, Percent):
        return BudgetLimits(budget_percent=budget.value, reserve_bytes=reserve)
    return BudgetLimits(budget_bytes=budget, reserve_bytes=reserve)


def _queue(queue: Given, reading: Reading) -> QueueLimits:
    fields = queue.fields()
    timeout_s: float = fields["timeout_s"]
    turn_s: float = fields.setdefault("turn_s", min(QueueLimits().turn_s, timeout_s))
    if turn_s > timeout_s and not queue.is_refused("timeout"):
        reading.wrong(
            queue.given("turn").where,
            "queue.turn",
            f"{turn_s:g} s: is more than queue.timeout, {timeout_s:g} s, so that nobody would live to see "
            "its turn; lower it",
        )
    return QueueLimits(**fields)


def _eviction(eviction: Given, reading: Reading) -> EvictionLimits:
    fields = eviction.fields()
    above: float = fields["above_percent"]
    below: float = fields["below_percent"]
    if above and below >= above and not eviction.is_refused("above", "below"):
        reading.wrong(
            eviction.given("below", "above").where,
            "eviction.below",
            f"{percent_text(below)}: is not below eviction.above, {percent_text(above)}; lower it",
        )
    fields["above_percent"] = above or None
    fields["policy"] = EvictionPolicy(fields["policy"])
    return EvictionLimits(**fields)
