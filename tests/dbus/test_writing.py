"""Bodies that gpud writes itself are, byte for byte, those that the library writes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.core.facts import EngineSettings, Model, ModelStatus, State
from gpud.core.record import replace
from gpud.core.statuses import Patience, Statuses
from gpud.core.stock import Stock
from gpud.dbus.bus import Library, clean_text, load_library
from gpud.dbus.model_records import NAMES, ModelRecords, Parts
from gpud.dbus.render import NOTHING_KNOWN, Known, model_record
from gpud.dbus.wall_clock import WallClock
from gpud.dbus.wire import Variant
from gpud.dbus.writing import SIGNATURES, write

NUMBERS = {"y": 8, "q": 16, "u": 32, "t": 64}
TEXTS = st.text(max_size=12)


def numbers(code: str) -> st.SearchStrategy[Any]:
    if code in NUMBERS:
        return st.integers(0, (1 << NUMBERS[code]) - 1)
    bits = {"n": 16, "i": 32, "x": 64}[code]
    return st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


SIMPLE = st.one_of(
    *(st.tuples(st.just(code), numbers(code)) for code in "yqutnix"),
    st.tuples(st.just("b"), st.booleans()),
    st.tuples(st.just("d"), st.floats(allow_nan=False)),
    st.tuples(st.just("s"), TEXTS),
    st.tuples(st.just("o"), st.sampled_from(["/", "/a", "/org/kernelcore"])),
    st.tuples(st.just("g"), st.sampled_from(["", "s", "a{sv}"])),
    st.tuples(st.just("h"), st.integers(0, 3)),
    st.tuples(st.just("as"), st.lists(TEXTS, max_size=3)),
    st.tuples(st.just("au"), st.lists(numbers("u"), max_size=3)),
    st.tuples(st.just("at"), st.lists(numbers("t"), max_size=3)),
    st.tuples(st.just("a(ss)"), st.lists(st.tuples(TEXTS, TEXTS).map(list), max_size=3)),
    st.tuples(st.just("a(yt)"), st.lists(st.tuples(numbers("y"), numbers("t")).map(list), max_size=3)),
    st.tuples(st.just("a{st}"), st.dictionaries(TEXTS, numbers("t"), max_size=3)),
).map(lambda pair: Variant(*pair))


def record_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(TEXTS, values, max_size=5)


RECORDS = st.recursive(
    record_of(SIMPLE),
    lambda inner: record_of(
        st.one_of(
            SIMPLE,
            inner.map(lambda record: Variant("a{sv}", record)),
            st.lists(inner, max_size=3).map(lambda records: Variant("aa{sv}", records)),
        )
    ),
    max_leaves=6,
)


class OnlyTheLibrary(Library):
    """The library without what gpud writes itself."""

    def written(self, signature: str, values: list[Any]) -> bytes:
        return bytes(self._writer(signature, [self._outward(value) for value in values]).marshall())


@pytest.fixture(scope="module", params=["dbus_next", "dbus_fast"])
def reference(request: pytest.FixtureRequest) -> OnlyTheLibrary:
    try:
        made = load_library(request.param)
    except ImportError:
        pytest.skip(f"{request.param} is not installed")
    return OnlyTheLibrary(made.name, made._variant, made._variant_type, made._writer, made._reader)


@settings(max_examples=200, deadline=None)
@given(records=st.lists(RECORDS, max_size=4), name=TEXTS, words=st.lists(TEXTS, max_size=3))
def test_the_same_bytes_as_the_library(
    reference: OnlyTheLibrary, records: list[Any], name: str, words: list[str]
) -> None:
    """For every body that is written here, whatever is in it."""
    first = records[0] if records else {}
    bodies: dict[str, list[Any]] = {
        "aa{sv}": [records],
        "a{sv}": [first],
        "sa{sv}as": [name, first, words],
        "v": [Variant("aa{sv}", records)],
    }
    assert bodies.keys() == SIGNATURES
    for signature, values in bodies.items():
        assert write(signature, values, clean_text) == reference.written(signature, values), signature


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("aa{sv}", []),
        ("aa{sv}", [[], []]),
        ("aa{sv}", [5]),
        ("a{sv}", [{"a": Variant("u", -1)}]),
        ("a{sv}", [{"a": Variant("u", 1 << 32)}]),
        ("a{sv}", [{"a": Variant("s", 5)}]),
        ("a{sv}", [{5: Variant("s", "a")}]),
        ("a{sv}", [{"a": "bare"}]),
        ("a{sv}", [{"a": Variant("(ss)", ["one"])}]),
        ("v", [Variant("r", 0)]),
    ],
)
def test_what_does_not_fit_is_not_written(signature: str, values: list[Any]) -> None:
    """A message is either right or not sent."""
    with pytest.raises(Exception):  # noqa: B017 - whatever it is, it is told as an internal error
        write(signature, values, clean_text)


STATUSES = st.builds(
    ModelStatus,
    model=st.builds(
        Model,
        name=st.text("abc-\x00\udcff", min_size=1, max_size=8),
        engine=st.sampled_from(["llama_server", "ollama"]),
        settings=st.builds(EngineSettings, context=st.sampled_from([None, 512])),
        aliases=st.sampled_from([(), ("x",), ("long-alias", "y")]),
        pinned=st.booleans(),
    ),
    state=st.sampled_from(list(State)),
    reason=st.sampled_from(["", "idle"]),
    holds=st.integers(0, 2),
    waiting=st.booleans(),
    last_used_s=st.sampled_from([None, 5.0]),
    retry_at_s=st.sampled_from([None, 9.0]),
    retries=st.booleans(),
    attempts=st.integers(0, 2),
    load_seconds=st.sampled_from([None, 1.5]),
    error=st.sampled_from(["", "no"]),
    pids=st.sampled_from([(), (7, 8)]),
    shares=st.sampled_from([(), (("gpu", 5),)]),
    idle_timeout_s=st.sampled_from([0.0, 300.0]),
    progress=st.sampled_from([None, 0.5]),
)


@settings(max_examples=200, deadline=None)
@given(statuses=st.lists(STATUSES, max_size=5))
def test_records_that_are_made_together_are_those_that_are_made_singly(statuses: list[ModelStatus]) -> None:
    """Models at rest share their bytes, and nobody can tell."""
    clock = WallClock(lambda: 100.0)
    clock.see(1.0)
    records = ModelRecords(tuple(statuses), clock)
    plain = [model_record(status, clock) for status in statuses]
    assert list(records) == plain == records and len(records) == len(plain)
    assert write("aa{sv}", [records], clean_text) == write("aa{sv}", [plain], clean_text)
    body = {"before": Variant("b", True), "Models": Variant("aa{sv}", records)}
    assert write("a{sv}", [body], clean_text) == write(
        "a{sv}", [body | {"Models": Variant("aa{sv}", plain)}], clean_text
    )
    assert all(tuple(record)[:3] == NAMES for record in plain)


@settings(max_examples=200, deadline=None)
@given(statuses=st.lists(STATUSES, min_size=1, max_size=4), other=STATUSES, moved_s=st.sampled_from([0.0, 3600.0]))
def test_two_looks_are_compared_by_what_is_shown(
    statuses: list[ModelStatus], other: ModelStatus, moved_s: float
) -> None:
    """Whatever differs between them, and when the wall clock was set as well."""
    clock = WallClock(lambda: 100.0)
    later = WallClock(lambda: 100.0 + moved_s)
    for each in (clock, later):
        each.see(1.0)
    changed = [other, *statuses[1:]]
    one, two = ModelRecords(tuple(statuses), clock), ModelRecords(tuple(changed), later)
    assert (one == two) == (list(one) == list(two))
    assert one == ModelRecords(tuple(replace(status) for status in statuses), clock)
    keys = frozenset(("LastUsedUSec", "State"))
    calm = [
        [{key: value for key, value in record.items() if key not in keys} for record in each] for each in (one, two)
    ]
    assert one.same(two, keys) == (calm[0] == calm[1])


KNOWN = st.builds(Known, st.sampled_from((0, 5 << 30)), st.integers(0, 2), st.sampled_from((0, 1_700_000_000_000_000)))


@settings(max_examples=200, deadline=None)
@given(
    resting=st.lists(st.tuples(STATUSES.map(lambda one: one.model), KNOWN), max_size=5),
    moving=st.lists(STATUSES, max_size=3),
    later=KNOWN,
)
def test_bytes_that_are_kept_are_those_that_would_be_made(
    resting: list[tuple[Model, Known]], moving: list[ModelStatus], later: Known
) -> None:
    """Of models at rest, whoever asks and however often, and when something else is known of one."""
    clock = WallClock(lambda: 100.0)
    clock.see(1.0)
    named = [(replace(model, name=f"m{number}"), one) for number, (model, one) in enumerate(resting)]
    known = {model.name: one for model, one in named}
    lively = {
        f"{'m' if number % 2 else 'x'}{number}": replace(
            status, model=replace(status.model, name=f"{'m' if number % 2 else 'x'}{number}")
        )
        for number, status in enumerate(moving)
    }
    parts = Parts()

    def check(stock: Stock, lively: dict[str, ModelStatus]) -> None:
        statuses = Statuses(stock, lively, Patience())

        def tells(name: str) -> Known:
            return known.get(name, NOTHING_KNOWN)

        records = ModelRecords(statuses, clock, tells, None, parts)
        plain = [model_record(status, clock, tells(status.model.name)) for status in statuses]
        assert list(records) == plain
        assert write("aa{sv}", [records], clean_text) == write("aa{sv}", [plain], clean_text)

    stock = Stock((model.name, model) for model, _ in named)
    check(stock, {})
    check(stock, lively)
    if known:
        known["m0"] = later
    check(stock, {})
    check(stock.changed({"m0": Model("m0", "other", aliases=("short",))}), lively)
