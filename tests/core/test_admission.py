"""Whether somebody may have memory now, and where: rule by rule, values only."""

from collections.abc import Sequence

import pytest

from gpud.core import budget
from gpud.core.admission import Admission
from gpud.core.budget import Account
from gpud.core.errors import BudgetExceeded, GpuTaken, GpuUnavailable
from gpud.core.eviction import Candidate
from gpud.core.facts import HOST, BudgetLimits, EngineSettings, GpuSample, Model
from gpud.core.quote import ANY_GPU, Offer, Quote, Share, Source
from gpud.core.record import replace
from gpud.core.verdict import Device, Evicts, Granted, Refused, Verdict, Waits, Wish

GIB = 1 << 30


def device(
    uuid: str = "GPU-0",
    available: float | None = 8,
    *,
    capacity: float = 8,
    coming: float = 0,
    idle: dict[str, float] | None = None,
    busy: dict[str, float] | None = None,
    starting: dict[str, float] | None = None,
    claimed: float = 0,
    held: float = 0,
    health: str = "",
    taken_by: str = "",
) -> Device:
    """A device by GiB. ``held`` is what models hold that may not go."""

    def models(sizes: dict[str, float] | None, *, working: bool = False) -> tuple[Candidate, ...]:
        items = enumerate((sizes or {}).items())
        return tuple(Candidate(name, number, int(size * GIB), busy=working) for number, (name, size) in items)

    tiers = models(idle), models(busy, working=True), models(starting)
    committed = held + claimed + coming + sum(c.bytes for tier in tiers for c in tier) / GIB
    total = int(capacity * GIB)
    free = None if available is None else int(available * GIB)
    account = Account(total, total - free if free is not None else int(committed * GIB), 0, free)
    account = replace(account, committed_bytes=min(account.committed_bytes, max(0, int(committed * GIB))))
    vendor = HOST if uuid == HOST else "nvidia"
    index = int(uuid[-1]) if uuid[-1].isdigit() else 0
    sample = GpuSample(uuid, f"card {uuid}", index, vendor, total, health=health)
    return Device(sample, account, int(coming * GIB), *tiers, int(claimed * GIB), taken_by)


HOST_DEVICE = device(HOST, 16, capacity=16)


def wish(size: float, **more: object) -> Wish:
    return Wish('load "m"', Quote.simple(int(size * GIB)), **more)  # type: ignore[arg-type]


def decide(wanted: Wish, *devices: Device, ahead: Sequence[Verdict] = (), now: float = 0.0) -> Verdict:
    waiting = [verdict for verdict in ahead if isinstance(verdict, Waits)]
    assert len(waiting) == len(ahead)
    return Admission([*devices, HOST_DEVICE], ahead=waiting, now=now).decide(wanted)


def where(verdict: Verdict) -> list[tuple[str, float]]:
    assert not isinstance(verdict, Refused)
    return [(share.device, share.bytes / GIB) for share in verdict.shares]


# 1, 2: now


def test_what_needs_nothing_is_granted_whatever_is_full() -> None:
    """An engine that somebody else runs."""
    assert isinstance(decide(wish(0), device(available=0)), Granted)


def test_what_fits_goes_to_the_roomiest() -> None:
    """By free bytes."""
    verdict = decide(wish(2), device("GPU-0", 3), device("GPU-1", 5))
    assert isinstance(verdict, Granted)
    assert where(verdict) == [("GPU-1", 2)]


def test_a_named_gpu_is_the_only_one() -> None:
    """By its index or its uuid."""
    for name in ("0", "GPU-0"):
        assert where(decide(wish(2, gpu=name), device("GPU-0", 3), device("GPU-1", 5))) == [("GPU-0", 2)]


def test_what_fits_beside_what_those_before_wait_for_is_granted_at_once() -> None:
    """The first waits for a busy model; when that has gone there is room for both, so the second has nothing to wait
    for.
    """
    gpu = device(available=2, busy={"x": 6})
    first = decide(wish(6), gpu)
    assert isinstance(first, Waits) and first.cause == "busy"
    assert isinstance(decide(wish(2), gpu, ahead=[first]), Granted)


def test_what_those_before_will_need_is_not_given_away() -> None:
    """It fits now, but then the first would have to wait for more than it waits for already."""
    gpu = device(available=2, busy={"x": 6})
    second = decide(wish(2), gpu, ahead=[decide(wish(7), gpu)])
    assert isinstance(second, Waits) and second.cause == "behind"


@pytest.mark.parametrize("tier", ["starting", "busy"])
def test_those_behind_may_have_what_is_left_whatever_the_first_waits_for(tier: str) -> None:
    """Loading or answering."""
    gpu = device(available=2, **{tier: {"x": 6}})  # type: ignore[arg-type]
    ahead = [decide(wish(6), gpu)]
    assert isinstance(decide(wish(2), gpu, ahead=ahead), Granted)
    assert isinstance(decide(wish(2.1), gpu, ahead=ahead), Waits)


def test_who_was_told_to_wait_for_those_before_is_asked_again_when_one_gpu_is_left_over() -> None:
    """They have everything of the other one; where nothing is left anywhere, nobody is asked in vain."""
    before = Waits((Share("GPU-0", 2 * GIB),), "waiting for those before it", "behind")
    first = Waits((Share("GPU-0", 8 * GIB),), "waiting", "coming")
    both = [first, Waits((Share("GPU-1", 8 * GIB),), "waiting", "coming")]
    for ahead, waits_on in ((both[:1], False), (both, True)):
        admission = Admission([device("GPU-0"), device("GPU-1"), HOST_DEVICE], ahead=ahead)
        assert admission.still_behind(before) is waits_on
        assert not admission.still_behind(replace(before, cause="busy"))
        assert not admission.still_behind(replace(before, shares=(Share(HOST, GIB),)))


# 3: on its way


def test_what_is_on_its_way_is_waited_for_and_nobody_goes() -> None:
    """An idle model stays."""
    verdict = decide(wish(5), device(available=1, coming=4, idle={"a": 3}))
    assert verdict == Waits((Share("GPU-0", 5 * GIB),), "waiting for 4.0 GiB to come back on card GPU-0", "coming")


def test_what_is_on_its_way_belongs_to_the_first() -> None:
    """The second makes room of its own."""
    gpu = device(available=1, coming=4, idle={"a": 3})
    second = decide(wish(2), gpu, ahead=[decide(wish(5), gpu)])
    assert isinstance(second, Evicts)
    assert [victim.model for victim in second.victims] == ["a"]


# 4: idle models


def test_idle_models_go_before_anybody_waits_for_a_busy_one() -> None:
    """As few as will do."""
    verdict = decide(wish(4), device(available=2, idle={"a": 1, "b": 2}, busy={"x": 3}))
    assert isinstance(verdict, Evicts)
    assert [victim.model for victim in verdict.victims] == ["b"]
    assert [candidate.model for candidate in verdict.spared] == ["a"]
    assert verdict.text == "needs 4.0 GiB, 2.0 GiB available on card GPU-0"


def test_who_may_not_evict_is_refused_and_told_what_eviction_would_do() -> None:
    """With the number of bytes."""
    verdict = decide(wish(4, may_evict=False), device(available=2, idle={"a": 3}))
    assert isinstance(verdict, Refused)
    assert verdict.error.hint == "allow eviction: idle models hold 3.0 GiB"


def test_a_model_for_which_somebody_before_waits_does_not_go_for_another() -> None:
    """It is spoken for: the second evicts what nobody waits for, or waits itself."""
    gpu = device(available=0, idle={"a": 1}, busy={"x": 7})
    ahead = [decide(wish(7), gpu)]
    assert isinstance(ahead[0], Waits) and ahead[0].awaits == {"x"}
    second = decide(wish(1, overdue=True), gpu, ahead=ahead)
    assert isinstance(second, Evicts)
    assert [victim.model for victim in second.victims] == ["a"]
    third = decide(wish(2, overdue=True), gpu, ahead=ahead)
    assert isinstance(third, Waits) and third.cause == "behind"


def test_the_gpu_where_the_least_is_lost_is_emptied() -> None:
    """What was used an hour ago goes rather than what was used just now."""
    old = replace(device("GPU-0", 1), movable=(Candidate("old", 0.0, 6 * GIB, reload_s=3),))
    new = replace(device("GPU-1", 2), movable=(Candidate("new", 3599.0, 6 * GIB, reload_s=3),))
    verdict = decide(wish(6), old, new, now=3600.0)
    assert isinstance(verdict, Evicts)
    assert [victim.model for victim in verdict.victims] == ["old"]


def test_a_higher_priority_does_not_go_while_a_lower_one_on_another_gpu_could() -> None:
    """However long it has not been used."""
    high = replace(device("GPU-0", 1), movable=(Candidate("high", 0.0, 6 * GIB, priority=2),))
    low = replace(device("GPU-1", 1), movable=(Candidate("low", 3599.0, 6 * GIB, priority=0, reload_s=60),))
    verdict = decide(wish(6), high, low, now=3600.0)
    assert isinstance(verdict, Evicts)
    assert [victim.model for victim in verdict.victims] == ["low"]


# 5: models in use


def test_models_in_use_are_waited_for_by_name() -> None:
    """They are not asked to go before it is overdue."""
    gpu = device(available=2, busy={"x": 6})
    waits = decide(wish(6), gpu)
    assert isinstance(waits, Waits)
    assert waits.text == 'needs 6.0 GiB, 2.0 GiB available on card GPU-0; waiting until "x" has answered'
    assert isinstance(decide(wish(6, overdue=True), gpu), Evicts)


def test_who_waits_for_a_busy_model_waits_for_the_same_one_at_the_next_look() -> None:
    """As long as it is enough, and no idle one would do; it does not jump from one to another."""
    gpu = device(available=0, busy={"x": 4, "y": 4})
    first = decide(wish(4), gpu)
    assert isinstance(first, Waits)
    (awaited,) = first.awaits
    (other,) = {"x", "y"} - {awaited}
    later = replace(gpu, occupied=tuple(replace(c, reload_s=9.0 * (c.model == awaited)) for c in gpu.occupied))
    again = decide(wish(4, before=first), later)
    assert again == first
    assert isinstance(decide(wish(4, before=first), device(idle={other: 4}, available=0, busy={awaited: 4})), Evicts)
    assert isinstance(decide(wish(5, before=first), later), Waits)
    gone = device(available=0, busy={other: 4})
    assert decide(wish(4, before=first), gone) != first


def test_an_idle_model_does_not_go_in_vain_with_a_busy_one() -> None:
    """The busy one has to go anyway, and is enough."""
    verdict = decide(wish(6, overdue=True), device(available=1, idle={"a": 1}, busy={"x": 6}))
    assert isinstance(verdict, Evicts)
    assert [victim.model for victim in verdict.victims] == ["x"]


# 6: models that are loading


def test_models_that_are_loading_are_waited_for() -> None:
    """Once they are ready they can go."""
    verdict = decide(wish(6, overdue=True), device(available=2, starting={"x": 6}))
    assert isinstance(verdict, Waits) and verdict.cause == "loading"


# 7: claims


def test_a_claim_waits_for_claims_and_a_load_does_not() -> None:
    """A training may take hours: whoever sits before a screen is told so at once."""
    gpu = device(available=2, claimed=6)
    claim = decide(wish(5, awaits_claims=True), gpu)
    assert isinstance(claim, Waits) and claim.cause == "claimed"
    assert claim.text == (
        "needs 5.0 GiB, 2.0 GiB available on card GPU-0, programs have claimed 6.0 GiB; waiting until they give it back"
    )
    load = decide(wish(5), gpu)
    assert isinstance(load, Refused)
    assert load.error.hint == "wait until a claim is given back, see gpudctl vram"


def test_beside_a_claim_that_waits_for_claims_smaller_ones_are_served() -> None:
    """What is left when both have what they want."""
    gpu = device(available=2, claimed=6)
    ahead = [decide(wish(6, awaits_claims=True), gpu)]
    assert isinstance(decide(wish(2), gpu, ahead=ahead), Granted)


# 8: those before


def test_what_would_fit_if_nobody_were_before_it_waits() -> None:
    """It is not refused."""
    gpu = device(available=4, coming=4)
    ahead = [decide(wish(8), gpu)]
    verdict = decide(wish(4), gpu, ahead=ahead)
    assert verdict == Waits((Share("GPU-0", 4 * GIB),), "waiting for those before it on card GPU-0", "behind")


# 9: refused


def test_a_refusal_names_need_available_and_who_has_the_rest() -> None:
    """Held models, claims, or others."""

    def refusal(**more: float) -> BudgetExceeded:
        verdict = decide(wish(6), device(available=2, **more))  # type: ignore[arg-type]
        assert isinstance(verdict, Refused) and isinstance(verdict.error, BudgetExceeded)
        return verdict.error

    error = refusal(held=6)
    assert error.message == (
        'cannot load "m": it needs 6.0 GiB, 2.0 GiB are available on card GPU-0 '
        "(budget 8.0 GiB, own models 6.0 GiB, free 2.0 GiB)"
    )
    assert (error.need_bytes, error.available_bytes) == (6 * GIB, 2 * GIB)
    assert error.hint == "unload a model that is held or pinned, see gpudctl status"
    assert "own models 0 MiB, claims 6.0 GiB, free 2.0 GiB" in refusal(claimed=6).message
    assert refusal().hint == "other programs hold the memory, see gpudctl vram"


def test_an_idle_model_that_would_not_help_is_not_called_held() -> None:
    """The game has the rest."""
    verdict = decide(wish(6), device(available=2, idle={"a": 2}))
    assert isinstance(verdict, Refused)
    assert verdict.error.hint == "other programs hold the memory, see gpudctl vram"


def test_what_is_larger_than_the_largest_budget_is_told_what_would_fit() -> None:
    """By the offers that nobody allowed."""
    less = (
        Offer((Share(ANY_GPU, 9 * GIB),), context=8192, reduced="a context of 8192"),
        Offer((Share(ANY_GPU, 7 * GIB),), context=4096, reduced="a context of 4096"),
        Offer((Share(ANY_GPU, 5 * GIB), Share(HOST, 6 * GIB)), layers=20, reduced="20 of 33 layers on the GPU"),
    )
    quote = Quote(Quote.simple(10 * GIB).offers, less=less)
    verdict = decide(Wish('load "m"', quote), device("GPU-0", 4, capacity=6), device("GPU-1", 2))
    assert isinstance(verdict, Refused)
    assert verdict.error.message == 'cannot load "m": it needs 10.0 GiB, the whole budget of card GPU-1 is 8.0 GiB'
    assert verdict.error.hint == "it fits with a context of 4096 or with 20 of 33 layers on the GPU"


def told(verdict: Verdict) -> str:
    assert isinstance(verdict, Refused)
    return verdict.error.message


@pytest.mark.parametrize("reverse", [False, True])
def test_of_several_devices_the_one_that_comes_nearest_is_named(reverse: bool) -> None:
    """The one that lacks the least; before it any that is large enough if it were empty. However they are listed."""

    def of(size: float, *devices: Device) -> str:
        return told(decide(wish(size), *(devices[::-1] if reverse else devices)))

    assert "2.0 GiB are available on card GPU-1 " in of(4, device("GPU-0", 1, held=7), device("GPU-1", 2, held=6))
    assert "1.0 GiB are available on card GPU-1 " in of(6, device("GPU-0", 4, capacity=4), device("GPU-1", 1, held=7))
    assert "the whole budget of card GPU-1 is 10.0 GiB" in of(
        12, device("GPU-0", 8), device("GPU-1", 3, held=7, capacity=10)
    )


def parted(*gib: float) -> Wish:
    shares = tuple(Share(f"GPU-{number}", int(size * GIB)) for number, size in enumerate(gib))
    return Wish('load "m"', Quote((Offer(shares),)))


def test_of_one_that_is_split_the_part_is_named_that_lacks_the_most() -> None:
    """But first one that is larger than its device: nobody's going would help."""
    full, fuller = device("GPU-0", 2, held=6), device("GPU-1", 1, held=7)
    assert "it needs 6.0 GiB, 1.0 GiB are available on card GPU-1 " in told(decide(parted(3, 6), full, fuller))
    assert "it needs 6.0 GiB, 2.0 GiB are available on card GPU-0 " in told(decide(parted(6, 3), full, fuller))
    small = device("GPU-1", 4, capacity=4)
    large = device("GPU-0", 0, held=8)
    assert "it needs 5.0 GiB, the whole budget of card GPU-1 is 4.0 GiB" in told(decide(parted(8, 5), large, small))


def test_what_is_as_large_as_the_whole_budget_is_not_too_large() -> None:
    """It would fit if nobody else were there."""
    assert "it needs 8.0 GiB, 1.0 GiB are available" in told(decide(wish(8), device(available=1, held=7)))
    assert "the whole budget of" not in told(decide(parted(8, 1), device("GPU-0", 7, held=1), device("GPU-1", 0)))


def test_a_split_over_a_device_that_is_not_there_is_refused_with_what_it_names() -> None:
    """No number says anything then."""
    verdict = decide(parted(1, 1), device("GPU-0"))
    assert isinstance(verdict, Refused) and isinstance(verdict.error, GpuUnavailable)
    assert told(verdict) == 'cannot load "m": not all of its devices can be used (GPU-0, GPU-1)'


def test_models_that_are_going_already_are_not_what_stands_in_the_way() -> None:
    """Other programs have the rest."""
    verdict = decide(wish(6), device(available=1, coming=3))
    assert isinstance(verdict, Refused)
    assert verdict.error.hint == "other programs hold the memory, see gpudctl vram"


def test_of_what_would_fit_the_best_of_each_kind_is_told() -> None:
    """To the byte, and nothing that is not on the device in question at all."""
    less = (
        Offer((Share(ANY_GPU, 9 * GIB),), layers=30, reduced="30 layers"),
        Offer((Share(ANY_GPU, 8 * GIB),), layers=20, reduced="20 layers"),
        Offer((Share(ANY_GPU, 4 * GIB),), layers=10, reduced="10 layers"),
        Offer((Share(HOST, GIB),), context=512, reduced="none on the GPU"),
    )
    large = Quote(Quote.simple(10 * GIB).offers, less=less)
    verdict = decide(Wish('load "m"', large), device(available=8))
    assert isinstance(verdict, Refused) and verdict.error.hint == "it fits with 20 layers"
    on_host = Quote(Quote.simple(20 * GIB, on_host=True).offers, less=less)
    verdict = decide(Wish('load "m"', on_host, gpu=HOST), device("GPU-0", 24, capacity=24))
    assert told(verdict) == 'cannot load "m": it needs 20.0 GiB, the whole budget of card host is 16.0 GiB'
    assert isinstance(verdict, Refused)
    assert verdict.error.hint == "it fits with 30 layers or with none on the GPU"


# Which devices


def test_a_gpu_that_is_ill_asleep_or_taken_is_passed_over() -> None:
    """As long as there is another one."""
    for ill in (device(available=8, health="lost"), device(available=None), device(taken_by="blender has it")):
        assert where(decide(wish(2), ill, device("GPU-1", 3))) == [("GPU-1", 2)]


def test_if_no_gpu_can_be_used_each_says_why() -> None:
    """It is not a matter of bytes."""
    verdict = decide(wish(2), device(health="it is lost"), device("GPU-1", None))
    assert isinstance(verdict, Refused) and isinstance(verdict.error, GpuUnavailable)
    assert "(card GPU-0: it is lost; card GPU-1: does not tell its free memory)" in verdict.error.message
    taken = decide(wish(2), device(taken_by="3.0 GiB are held by others"))
    assert isinstance(taken, Refused) and isinstance(taken.error, GpuTaken)
    assert taken.error.message == 'cannot load "m": other programs use the GPU: 3.0 GiB are held by others'


@pytest.mark.parametrize(
    "model", [Model("a", "x"), Model("a", "x", gpu=HOST), Model("a", "x", EngineSettings(layers="0"))]
)
def test_host_memory_that_cannot_be_read_is_said_to_be_so(model: Model) -> None:
    """Not that it is too small."""
    sample = GpuSample(HOST, "host memory", 0, HOST, health="the kernel does not tell")
    admission = Admission([Device(sample, budget.account(sample, BudgetLimits(), ()))])
    verdict = admission.decide(Wish.load(model, Quote.simple(GIB)))
    assert isinstance(verdict, Refused)
    assert isinstance(verdict.error, GpuUnavailable)
    assert verdict.error.message == 'cannot load "a": host memory: the kernel does not tell'
    assert isinstance(admission.decide(Wish.load(model, Quote.simple(0))), Granted)


# Several offers


def split(first: float, second: float, *, host: float = 0) -> Offer:
    shares = (Share("GPU-0", int(first * GIB)), Share("GPU-1", int(second * GIB)), Share(HOST, int(host * GIB)))
    return Offer(shares, Source.FORMULA, split=(0.5, 0.5))


def offers(size: float, *more: Offer) -> Wish:
    return Wish('load "m"', Quote((*Quote.simple(int(size * GIB)).offers, *more)))


def test_a_model_is_split_only_when_no_gpu_can_hold_it() -> None:
    """Not even when others would have to go for it."""
    two = split(3, 3)
    evicts = decide(offers(6, two), device(available=3, idle={"a": 5}), device("GPU-1", 5))
    assert isinstance(evicts, Evicts)
    assert where(evicts) == [("GPU-0", 6)]
    granted = decide(offers(9, split(5, 4)), device(), device("GPU-1"))
    assert where(granted) == [("GPU-0", 5), ("GPU-1", 4), (HOST, 0)]


def test_a_victim_on_two_gpus_makes_room_on_both() -> None:
    """It is not counted once, and nobody else goes in vain."""
    first = replace(device("GPU-0", 1), movable=(Candidate("wide", 5, 4 * GIB), Candidate("a", 0, 4 * GIB)))
    second = replace(device("GPU-1", 1), movable=(Candidate("wide", 5, 4 * GIB),))
    verdict = decide(offers(9, split(5, 5)), first, second)
    assert isinstance(verdict, Evicts)
    assert {victim.model for victim in verdict.victims} <= {"wide", "a"}
    assert "wide" in {victim.model for victim in verdict.victims}
    only_wide = decide(offers(9, split(4, 4)), first, second)
    assert isinstance(only_wide, Evicts)


def test_a_split_needs_room_on_each_of_its_devices() -> None:
    """The machine's memory is one of them."""
    verdict = decide(offers(9, split(5, 4, host=17)), device(), device("GPU-1"))
    assert isinstance(verdict, Refused)
    waits = decide(offers(9, split(5, 4)), device(available=5, coming=3), device("GPU-1", 2, coming=2))
    assert isinstance(waits, Waits) and waits.text == "waiting for 2.0 GiB to come back on card GPU-1"


def test_less_is_taken_only_when_no_other_model_can_make_room_for_all() -> None:
    """As configured, once the busy one has answered; reduced where something stands in the way for ever."""
    smaller = Offer((Share(ANY_GPU, 3 * GIB),), context=4096, reduced="a context of 4096")
    waits = decide(offers(6, smaller), device(available=4, busy={"x": 4}))
    assert isinstance(waits, Waits) and waits.cause == "busy"
    granted = decide(offers(6, smaller), device(available=4, held=4))
    assert isinstance(granted, Granted) and granted.offer.reduced == "a context of 4096"


def test_without_any_offer_it_is_refused() -> None:
    """No engine can load it."""
    assert isinstance(decide(Wish('load "m"', Quote(())), device()), Refused)


def test_a_model_that_may_have_fewer_layers_is_not_put_off_a_gpu_that_is_lost() -> None:
    """It would be a hundred times slower, and nobody would know why."""
    offers = (
        Offer((Share(ANY_GPU, GIB),)),
        Offer((Share(HOST, GIB),), layers=0, reduced="no layers on the GPU"),
    )
    devices = [device(health="it has fallen off the bus"), device(HOST, 16)]
    verdict = Admission(devices).decide(Wish.load(Model("a", "x"), Quote(offers)))
    assert isinstance(verdict, Refused)
    assert isinstance(verdict.error, GpuUnavailable)
