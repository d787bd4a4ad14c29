"""Byte arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.core import budget, eviction
from gpud.core.books import Books
from gpud.core.budget import Charge, describe
from gpud.core.facts import HOST, BudgetLimits, GpuProcess, GpuSample, Limits

GIB = 1 << 30
sizes = st.integers(0, 64 * GIB)


def sample(free: int | None, total: int | None = 8 * GIB, uuid: str = "GPU-0", **more: object) -> GpuSample:
    used = None if free is None or total is None else total - free
    return GpuSample(uuid, "Test GPU", 0, "nvidia", total, used, free, **more)  # type: ignore[arg-type]


def test_the_smallest_limit_is_the_capacity() -> None:
    """Bytes, percent and reserve all hold."""
    assert budget.capacity(8 * GIB, BudgetLimits()) == 8 * GIB
    assert budget.capacity(8 * GIB, BudgetLimits(reserve_bytes=GIB)) == 7 * GIB
    assert budget.capacity(8 * GIB, BudgetLimits(budget_bytes=5 * GIB, reserve_bytes=GIB)) == 5 * GIB
    assert budget.capacity(8 * GIB, BudgetLimits(budget_percent=25, reserve_bytes=GIB)) == 2 * GIB
    assert budget.capacity(8 * GIB, BudgetLimits(reserve_bytes=9 * GIB)) == 0
    assert budget.capacity(None, BudgetLimits()) is None


def test_a_budget_set_at_run_time_wins_but_never_exceeds_the_device() -> None:
    """An override cannot promise memory that is not there."""
    assert budget.capacity(8 * GIB, BudgetLimits(budget_bytes=GIB), 3 * GIB) == 3 * GIB
    assert budget.capacity(8 * GIB, BudgetLimits(), 30 * GIB) == 8 * GIB


def test_without_a_gpu_the_gpus_budget_is_the_hosts() -> None:
    """As the manual says of gpu.budget; a budget of the host's own wins, and beside a GPU the host is unlimited."""
    gpu, host = sample(8 * GIB), sample(16 * GIB, 16 * GIB, uuid=HOST)

    def capacity(of: GpuSample, *samples: GpuSample, **own: int) -> int | None:
        books = Books(Limits(gpu=BudgetLimits(budget_bytes=2 * GIB), host=BudgetLimits(**own)))
        books.seen(samples, {}, {}, 0.0)
        return books.account(of, (), ()).capacity_bytes

    assert capacity(host, host) == 2 * GIB
    assert capacity(host, host, budget_bytes=4 * GIB) == 4 * GIB
    assert capacity(host, host, reserve_bytes=15 * GIB) == GIB
    assert capacity(host, gpu, host) == 16 * GIB
    assert capacity(gpu, gpu, host) == 2 * GIB


def test_other_programs_count_because_free_memory_is_measured() -> None:
    """A game that holds 6 of 8 GiB leaves 2, whatever the budget says."""
    books = budget.account(sample(2 * GIB), BudgetLimits(), [])

    assert books.available_bytes == 2 * GIB


def test_a_load_that_has_not_settled_counts_twice_over_only_once() -> None:
    """Its promise is taken off the measured free bytes until a measurement shows it."""
    loading = Charge("GPU-0", 3 * GIB)
    settled = Charge("GPU-0", 3 * GIB, 2 * GIB, settled=True)

    assert budget.account(sample(8 * GIB), BudgetLimits(), [loading]).available_bytes == 5 * GIB
    assert budget.account(sample(6 * GIB), BudgetLimits(), [settled]).available_bytes == 6 * GIB


def test_in_host_memory_the_untouched_part_stays_promised() -> None:
    """An engine touches its pages as it works."""
    charge = Charge(HOST, 3 * GIB, GIB, settled=True)

    assert charge.bytes == 3 * GIB
    assert charge.unseen_bytes == 2 * GIB


def test_what_is_unknown_is_not_available() -> None:
    """A device that does not tell its free memory gets no load."""
    assert budget.account(sample(None), BudgetLimits(), []).available_bytes is None


@given(free=sizes, total=sizes, charges=st.lists(sizes, max_size=6), limit=st.none() | sizes, reserve=sizes)
def test_available_never_exceeds_any_limit(
    free: int, total: int, charges: list[int], limit: int | None, reserve: int
) -> None:
    """Granting all that is available keeps within the budget and within what is measured free."""
    free = min(free, total)
    limits = BudgetLimits(budget_bytes=limit, reserve_bytes=reserve)
    books = budget.account(sample(free, total), limits, [Charge("GPU-0", size) for size in charges])
    available = books.available_bytes

    assert available is not None
    assert available >= 0
    if available:
        assert available + sum(charges) <= total - reserve
        assert available + sum(charges) + reserve <= free + sum(charges)
        assert limit is None or available + sum(charges) <= limit


def test_measured_needs_every_figure() -> None:
    """One process whose memory the driver does not tell makes the sum unknown."""
    known = sample(GIB, processes=(GpuProcess(1, "a", 5), GpuProcess(2, "b", 7), GpuProcess(3, "c", 100)))
    partly = sample(GIB, processes=(GpuProcess(1, "a", 5), GpuProcess(2, "b", None)))

    assert budget.measured(known, frozenset((1, 2))) == 12
    assert budget.measured(partly, frozenset((1, 2))) is None
    assert budget.measured(known, frozenset((9,))) is None
    assert budget.foreign(known, frozenset((1, 2))) == 7 * GIB - 12


def test_sizes_are_read_in_gib_and_mib() -> None:
    """As nvidia-smi's readers expect them."""
    assert describe(5 * GIB + GIB // 2) == "5.5 GiB"
    assert describe(300 << 20) == "300 MiB"
    assert [describe(size) for size in (0, 1, 700 << 10, 1 << 20)] == ["0 MiB", "1 KiB", "700 KiB", "1 MiB"]
    assert describe(None) == "unknown"


def test_the_least_recently_used_goes_first() -> None:
    """Among equals the oldest use decides."""
    old = eviction.Candidate("old", 1.0, 2 * GIB)
    new = eviction.Candidate("new", 2.0, 2 * GIB)

    assert eviction.choose([new, old], GIB) == (old,)
    assert eviction.choose([new, old], 3 * GIB) == (old, new)
    assert eviction.choose([new, old], 5 * GIB) is None
    assert eviction.choose([new, old], 0) == ()


def test_a_small_one_is_spared_when_a_large_one_has_to_go_anyway() -> None:
    """Nobody goes for nothing."""
    small = eviction.Candidate("small", 1.0, GIB)
    large = eviction.Candidate("large", 2.0, 6 * GIB)

    assert eviction.choose([small, large], 5 * GIB) == (large,)


def test_a_lower_priority_goes_before_an_older_use() -> None:
    """What the user said counts more than the clock."""
    low = eviction.Candidate("low", 9.0, 2 * GIB, priority=0)
    high = eviction.Candidate("high", 1.0, 2 * GIB, priority=2)

    assert eviction.choose([high, low], GIB) == (low,)


@given(
    st.lists(st.tuples(st.integers(0, 50), sizes, st.integers(0, 3)), max_size=8),
    sizes,
)
def test_victims_suffice_and_none_is_needless(raw: list[tuple[int, int, int]], missing: int) -> None:
    """Whatever is chosen covers what is missing, and no victim could have been spared."""
    candidates = [eviction.Candidate(f"m{i}", used, size, prio) for i, (used, size, prio) in enumerate(raw)]
    victims = eviction.choose(candidates, missing)
    if victims is None:
        assert sum(c.bytes for c in candidates) < missing
        return
    total = sum(v.bytes for v in victims)
    assert total >= missing
    assert all(total - v.bytes < missing for v in victims)


@pytest.mark.parametrize(
    ("account", "overdrawn"),
    [
        (budget.Account(10, 10, 4, 4), False),
        (budget.Account(10, 11, 4, 4), True),
        (budget.Account(10, 10, 5, 4), True),
        (budget.Account(None, 11, 4, 4), False),
        (budget.Account(None, 11, 5, 4), True),
        (budget.Account(10, 10, 5, None), False),
    ],
)
def test_a_device_is_overdrawn_by_its_budget_or_by_what_is_free(account: budget.Account, overdrawn: bool) -> None:
    """As far as it says what there is: what is unknown is not exceeded."""
    assert account.overdrawn is overdrawn
