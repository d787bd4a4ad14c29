"""What is remembered of models."""

import os
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.core.catalogue import Entry, Format, Found, Place, Purpose, Source
from gpud.core.ports import Registry
from gpud.core.record import replace
from gpud.store import FileStore
from gpud.store.model_changes import ABSENT_MOST
from gpud.store.model_rows import INTEGER_MOST
from store.model_entries import by_name, change, entry, found, names, query
from store.place import Place as Where

RICH = Entry(
    0,
    "qwen-vl",
    Found(
        (
            Place("/models/Qwen-VL-00001-of-00003.gguf", Source.FOLDER, "Qwen-VL"),
            Place("/hub/models--org--repo/snapshots/c0ffee/x.gguf", Source.HUGGINGFACE, "org/repo"),
        ),
        Format.SAFETENSORS,
        "2049:17:1:2",
        (20 << 30) + 1,
        "ab" * 32,
        "qwen3vl",
        "Q8_0",
        "30B-A3B",
        262144,
        Purpose.EMBEDDING,
        3,
        "/models/mmproj.gguf",
        "/models/draft.gguf",
        True,
        True,
        "qwen:30b",
        "its third part is missing",
    ),
    ("vl", "vision"),
    "high",
    ("night", "größe"),
    "for the cameras",
    21 << 30,
    ("llama-server", "ollama"),
    True,
    True,
    7,
    5,
    0,
    6,
    12.5,
)


def test_it_is_a_registry(place: Where) -> None:
    """What the engine asks for, by the names that it asks with."""
    registry: Registry = place.store().registry
    assert registry.entries() == ()


# Coming back ---------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_as_it_was(place: Where) -> None:
    """All that was found, all that became of it and all that was said, through a restart; its id is the store's."""
    (taken,) = place.store().registry.take([RICH], 1_000)
    assert taken == replace(RICH, id=1, last_scanned_us=1_000)
    assert place.again().registry.entries() == (taken,)
    assert place.told == []


texts = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20), st.binary(max_size=20).map(os.fsdecode)
)
whole = st.integers(0, INTEGER_MOST)
times = st.none() | whole
many_texts = st.lists(texts, max_size=3).map(tuple)
places = st.builds(Place, texts, st.sampled_from(Source), texts)
founds = st.builds(
    Found,
    st.lists(places, min_size=1, max_size=3).map(tuple),
    st.sampled_from(Format),
    texts,
    whole,
    *[texts] * 4,
    times,
    st.sampled_from(Purpose),
    st.integers(1, 1000),
    texts,
    texts,
    st.booleans(),
    st.booleans(),
    texts,
    texts,
)
entries = st.builds(
    Entry,
    st.just(0),
    texts.filter(bool),
    founds,
    many_texts,
    texts,
    many_texts,
    texts,
    times,
    many_texts,
    st.just(True),
    st.booleans(),
    whole,
    st.integers(1, INTEGER_MOST),
    whole,
    times,
    st.none() | st.floats(0, 1e6),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(entries, max_size=4, unique_by=(lambda one: one.name, lambda one: one.found.path)), whole)
def test_any_model_comes_back_as_it_was(given_: list[Entry], at_us: int) -> None:
    """Names of files are bytes: what is no text, and what is odd, comes back to the byte."""
    with tempfile.TemporaryDirectory() as top:
        where = Where(Path(top))
        taken = where.store().registry.take(given_, at_us)
        expected = [replace(one, id=id_, last_scanned_us=at_us) for id_, one in enumerate(given_, 1)]
        assert list(taken) == expected
        registry = where.again().registry
        assert list(registry.entries()) == expected
        assert list(registry.entries([one.name for one in given_])) == expected
        # It is the same when it is found again: nothing is written but the time.
        assert registry.take(taken, at_us) == taken
        where.close()
        assert where.told == []


def test_what_no_file_can_be_called_stops_nothing(place: Where) -> None:
    """Half a character, as somebody's JSON may have it, and more tokens than a column holds, as a file may claim."""
    odd = found("odd", architecture="\ud800", trained_context=2**64 - 1)
    registry = place.store().registry
    registry.take([entry("odd", found=odd)], 1)
    (kept,) = registry.entries()
    assert (kept.found.architecture, kept.found.trained_context) == ("\\ud800", INTEGER_MOST)
    assert registry.take([replace(kept, found=odd)], 2)[0].id == kept.id
    assert place.told == []


def test_some_are_found_by_their_names(place: Where) -> None:
    """However many are asked for; in the order of their ids; also such that are no text."""
    registry = place.store().registry
    odd = os.fsdecode(b"caf\xe9")
    registry.take([entry(f"m{number}") for number in range(1300)] + [entry(odd)], 1)
    wanted = [f"m{number}" for number in range(1299, 20, -1)] + [odd, "unknown"]
    assert names(registry.entries(wanted)) == [f"m{number}" for number in range(21, 1300)] + [odd]
    assert registry.entries([]) == () and registry.entries(["unknown"]) == ()


# Looking again -------------------------------------------------------------------------------------------------------


def audited(place: Where) -> Callable[[], int]:
    """Counts the rows that are written from now on."""
    change(place.database, "CREATE TABLE audit (id)")
    for verb, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
        change(
            place.database,
            f"CREATE TRIGGER on_{verb} AFTER {verb} ON model BEGIN INSERT INTO audit VALUES ({row}.id); END",
        )
    return lambda: query(place.database, "SELECT COUNT(*) FROM audit")[0][0]


def test_a_look_that_finds_nothing_new_writes_no_model(place: Where) -> None:
    """Only the time of the look; every model that is there was looked at then."""
    store = place.store()
    taken = store.registry.take([entry(f"m{number}") for number in range(50)], 10)
    store = place.again()
    written = audited(place)
    again = store.registry.take(taken, 20)
    assert written() == 0
    assert again == tuple(replace(one, last_scanned_us=20) for one in taken) == store.registry.entries()
    assert set(query(place.database, "SELECT last_scanned FROM models")) == {("1970-01-01T00:00:00.000+00:00",)}
    moved = replace(again[7], found=replace(again[7].found, size_bytes=1))
    store.registry.take([*again[:7], moved, *again[8:]], 30)
    assert written() == 1
    assert store.registry.entries()[7].found.size_bytes == 1


def test_a_model_that_went_is_remembered_until_it_is_back(place: Where) -> None:
    """With its id, its use and what was said; it was there last when it was seen last."""
    registry = place.store().registry
    first, second = registry.take([entry("first"), entry("second", configured=True)], 10)
    registry.annotate(replace(second, notes="mine", tags=("a",)))
    registry.used({second.id: (3, 15, 2.0)})
    registry.take([first], 20)
    registry.take([first], 30)
    gone = registry.entries()[1]
    assert (gone.present, gone.configured, gone.last_scanned_us, gone.usage_count) == (False, False, 10, 3)
    assert names(registry.take([first], 40)) == ["first", "second"]
    back = registry.take([first, replace(second, found=found("second", "/elsewhere"))], 50)[1]
    assert (back.id, back.present, back.last_scanned_us) == (second.id, True, 50)
    assert (back.usage_count, back.last_used_us, back.load_s, back.notes, back.tags) == (3, 15, 2.0, "mine", ("a",))
    assert place.again().registry.entries()[1] == back


def test_what_is_not_there_can_be_known(place: Where) -> None:
    """A model that the configuration names and whose file is missing."""
    registry = place.store().registry
    (missing,) = registry.take([entry("missing", present=False, configured=True)], 10)
    assert (missing.present, missing.configured, missing.last_scanned_us) == (False, True, 10)
    assert registry.take([missing], 20) == (missing,) == registry.entries()
    (there,) = registry.take([replace(missing, present=True)], 30)
    assert (there.present, there.last_scanned_us) == (True, 30)
    registry.take([there], 40)
    (gone,) = registry.take([replace(there, present=False)], 50)
    assert (gone.present, gone.configured, gone.last_scanned_us) == (False, True, 40)
    assert place.again().registry.entries() == (gone,)


def test_names_and_paths_can_go_round(place: Where) -> None:
    """Each of three gets what the next one had, all in one look."""
    registry = place.store().registry
    three = registry.take([entry(name) for name in "abc"], 1)
    turned = [
        replace(one, name=next_one.name, found=next_one.found)
        for one, next_one in zip(three, (*three[1:], three[0]), strict=True)
    ]
    assert names(registry.take(turned, 2)) == ["b", "c", "a"]
    for one in place.again().registry.entries():
        assert one.found == found(one.name)
    assert [one.id for one in three] == [1, 2, 3] and place.told == []


def test_who_is_not_there_gives_its_name_and_path_away(place: Where) -> None:
    """And keeps its past, under a name with its number; another one of that name gives way again."""
    registry = place.store().registry
    old, _ = registry.take([entry("llama", notes="old"), entry("llama~1")], 1)
    registry.used({old.id: (5, 1, None)})
    new = [entry("llama", found=found("llama", stamp="other")), entry("llama~1", found=found("x"))]
    taken = registry.take(new, 2)
    assert names(taken) == ["llama~1~", "llama~1~2", "llama", "llama~1"]
    assert [one.present for one in taken] == [False, False, True, True]
    assert (taken[0].usage_count, taken[0].notes, taken[0].found.path) == (5, "old", "/models/llama.gguf~1")
    assert (taken[2].id, taken[2].usage_count) == (3, 0)
    assert place.again().registry.entries() == taken


@pytest.mark.parametrize("what", ["name", "path", "id"])
def test_two_that_are_the_same_are_refused(place: Where, what: str) -> None:
    """Whoever gives names has given one twice: it is said which, and nothing is changed."""
    registry = place.store().registry
    before = registry.take([entry("a"), entry("b")], 1)
    twins = {
        "name": [before[0], replace(before[1], name="a")],
        "path": [before[0], replace(before[1], found=before[0].found)],
        "id": [before[0], replace(before[1], id=before[0].id)],
    }[what]
    with pytest.raises(ValueError, match=f"two of them have the {what}"):
        registry.take(twins, 2)
    assert registry.entries() == before
    assert names(registry.take([entry("c")], 3)) == ["a", "b", "c"]


def test_no_id_is_used_again(place: Where) -> None:
    """Neither at once nor after a restart; what was forgotten and is found again is new."""
    registry = place.store().registry
    first, second = registry.take([entry("a"), entry("b", notes="past")], 1)
    registry.forget(second.id)
    assert registry.entries() == (first,)
    registry = place.again().registry
    taken = registry.take([first, replace(second, notes="")], 2)
    assert [(one.id, one.name, one.notes) for one in taken] == [(1, "a", ""), (3, "b", "")]
    registry.forget(3)
    registry.forget(99)
    assert registry.take([first, entry("c")], 3)[1].id == 4


def test_those_gone_longest_are_forgotten_first(place: Where) -> None:
    """A folder with ever new names does not fill the disk."""
    registry = place.store().registry
    registry.take([entry(f"old{number}") for number in range(10)], 10)
    registry.take([entry(f"m{number}") for number in range(ABSENT_MOST)], 20)
    assert len(registry.entries()) == ABSENT_MOST + 10
    taken = registry.take([entry("last")], 30)
    assert names(taken) == [f"m{number}" for number in range(ABSENT_MOST)] + ["last"]
    assert query(place.database, "SELECT COUNT(*) FROM model") == [(ABSENT_MOST + 1,)]


# What became of it, and what was said --------------------------------------------------------------------------------


def test_uses_are_counted(place: Where) -> None:
    """Many at once; the time is that of the last one, and a load time stays until there is another."""
    registry = place.store().registry
    a, b, _ = registry.take([entry(name) for name in "abc"], 1)
    registry.used({a.id: (2, 100, 1.5), b.id: (1, 90, None), 77: (1, 1, 1.0)})
    registry.used({a.id: (1, 80, None)})
    kept = by_name(place.again().registry.entries())
    assert [(one.usage_count, one.last_used_us, one.load_s) for one in kept.values()] == [
        (3, 100, 1.5),
        (1, 90, None),
        (0, None, None),
    ]


def test_what_somebody_says_is_kept(place: Where) -> None:
    """Aliases, priority, tags and notes, and nothing else of what is handed over; all of it can be taken back."""
    registry = place.store().registry
    (one,) = registry.take([entry("a")], 1)
    said = replace(one, aliases=("x", "y"), priority="low", tags=("t",), notes="n")
    registry.annotate(replace(said, usage_count=9, estimate_bytes=9, present=False))
    assert place.again().registry.entries() == (said,)
    registry = place.store().registry
    registry = place.again().registry
    # A look that began before it was said takes nothing back.
    assert registry.take([one], 2) == (replace(said, last_scanned_us=2),)
    registry.annotate(one)
    assert registry.entries() == (replace(one, last_scanned_us=2),)


def test_an_estimate_is_of_one_file(place: Where) -> None:
    """It stays while the model does, also where only its times are new and its digest is the same; not for another."""
    registry = place.store().registry
    (one,) = registry.take([entry("a", found=found("a", digest="d"))], 1)
    registry.estimated({one.id: (5, "a"), 99: (1, "a")})
    (one,) = registry.take([one], 2)
    assert one.estimate_bytes == 5
    (one,) = registry.take([replace(one, found=replace(one.found, stamp="touched"))], 3)
    assert one.estimate_bytes == 5
    other = replace(one, found=replace(one.found, stamp="other", digest="e"))
    (one,) = registry.take([other], 4)
    assert one.estimate_bytes is None
    (one,) = registry.take([replace(one, estimate_bytes=6)], 5)
    assert one.estimate_bytes == 6 == registry.entries()[0].estimate_bytes


# Looking with other eyes ---------------------------------------------------------------------------------------------

SEVENTEEN = [
    *("id", "name", "path", "format", "size_gb", "vram_estimate_gb", "architecture", "quantization", "parameter_count"),
    *("context_length", "compatible_backends", "last_scanned", "last_used", "usage_count", "priority", "tags", "notes"),
]


def test_the_old_queries_work(place: Where) -> None:
    """The seventeen columns by their old names, with their old meanings, in their old order; and nothing else."""
    registry = place.store().registry
    at_us = 1_764_100_000_250_000
    plain = entry("plain", found=found("plain", architecture="", quantization="", parameters="", trained_context=None))
    far = entry(
        "far", found=Found((Place("ollama:far", Source.OLLAMA, "far"),), Format.OTHER, "", 0, ollama_name="far")
    )
    registry.take([RICH, plain, far, entry("llama", priority="normal")], at_us)
    assert [row[1] for row in query(place.database, "PRAGMA table_info(models)")] == SEVENTEEN
    assert query(place.database, "PRAGMA journal_mode") == [("wal",)]
    rows = query(place.database, "SELECT * FROM models ORDER BY id")
    scanned, used = rows[0][11], rows[0][12]
    assert rows[0] == (
        *(1, "qwen-vl", "/models/Qwen-VL-00001-of-00003.gguf", "SafeTensors", 20.0, 21.0, "qwen3vl", "Q8_0", "30B-A3B"),
        *(262144, '["llama-server","ollama"]', scanned, used, 7, "high", '["night","größe"]', "for the cameras"),
    )
    assert datetime.fromisoformat(scanned).timestamp() == at_us / 1e6
    assert datetime.fromisoformat(used).timestamp() == 0
    assert rows[1] == (
        *(2, "plain", "/models/plain.gguf", "GGUF", 5.0, 5.5, None, None, None, 0),
        *('["llama-server"]', scanned, None, 0, "medium", "[]", None),
    )
    assert rows[2][2:6] == ("ollama:far", "Ollama", 0.0, 0.0)
    assert rows[3][14] == "medium"
    query_of_old = "SELECT name, quantization, size_gb FROM models WHERE architecture = 'llama' ORDER BY last_used DESC"
    assert query(place.database, query_of_old) == [("llama", "Q4_K_M", 5.0)]
    tagged = "SELECT name FROM models WHERE EXISTS (SELECT 1 FROM json_each(tags) WHERE value = 'größe')"
    assert query(place.database, tagged) == [("qwen-vl",)]


def test_the_old_table_says_which_engines_take_a_model(place: Where) -> None:
    """By its format, as the old registry did, where nobody has said otherwise; what is broken is taken by none."""

    def one(name: str, kind: Format, **more: object) -> Entry:
        place_of = (Place(f"/models/{name}", Source.FOLDER, name),)
        return Entry(0, name, replace(Found(place_of, kind, name, 1), **more))  # type: ignore[arg-type]

    place.store().registry.take(
        [
            one("gguf", Format.GGUF),
            one("folder", Format.SAFETENSORS),
            one("far", Format.OTHER, ollama_name="far"),
            one("own", Format.OTHER),
            one("broken", Format.GGUF, problem="it is cut off"),
            one("lora", Format.GGUF, purpose=Purpose.ADAPTER),
        ],
        1,
    )
    assert dict(query(place.database, "SELECT name, compatible_backends FROM models")) == {
        "gguf": '["llamacpp","ollama"]',
        "folder": '["vllm","tgi"]',
        "far": '["ollama"]',
        "own": "[]",
        "broken": "[]",
        "lora": "[]",
    }


def test_some_are_taken_as_all_are(place: Where) -> None:
    """Of the others nothing changes; who is gone is no longer there, and whose name and path are wanted gives way."""
    registry = place.store().registry
    before = registry.take([entry("a"), entry("b"), entry("c")], 5)
    a, b, c = before
    moved = replace(b, found=replace(b.found, stamp="another", size_bytes=7))
    taken = registry.take_some([moved, entry("d")], [a.id], 9)
    assert taken is not None
    assert [(one.name, one.present) for one in taken] == [("a", False), ("b", True), ("d", True)]
    now = {one.name: one for one in registry.entries()}
    assert now["c"] == replace(c, last_scanned_us=9) and now["b"].found.size_bytes == 7
    assert (now["a"].present, now["a"].last_scanned_us, now["d"].id) == (False, 5, 4)
    same = entry("e", found=replace(found("e"), places=a.found.places))
    assert registry.take_some([same], [a.id], 10) is not None
    assert {one.name: one.found.path for one in registry.entries()}["a"] == f"{a.found.path}~{a.id}"


def test_what_may_be_the_same_is_found_by_its_places_and_sizes(place: Where) -> None:
    """Whichever of its places it is, and whatever stands in its name."""
    registry = place.store().registry
    odd = 'qu"ote\\ and 100% größe'
    two = (Place("/models/two.gguf", Source.FOLDER, "two"), Place(f"/hub/{odd}.gguf", Source.HUGGINGFACE, "two"))
    registry.take([entry("one"), entry("two", found=replace(found("two"), places=two, size_bytes=77))], 1)

    def related(*paths: str, sizes: tuple[int, ...] = ()) -> list[str]:
        return [one.name for one in registry.related(paths, sizes) or ()]

    assert related("/models/one.gguf") == ["one"] and related("/models/one") == related() == []
    assert related(f"/hub/{odd}.gguf") == related(sizes=(77,)) == ["two"]
    assert related("/models/one.gguf", "/models/two.gguf") == ["one", "two"]
    one, two_kept = registry.entries()
    registry.annotate(replace(one, aliases=("uno",)))
    registry.take([two_kept], 2)
    assert registry.names() == {"one": False, "uno": True, "two": True}


def test_every_model_is_shown_whose_name_is_no_text(place: Where) -> None:
    """A terminal gets the bytes that the file is called by."""
    odd = os.fsdecode(b"caf\xe9")
    place.store().registry.take([entry(odd, tags=(odd,))], 1)
    assert query(place.database, "SELECT name, path FROM models") == [(b"caf\xe9", b"/models/caf\xe9.gguf")]


def test_what_was_changed_by_hand_hides_no_model(place: Where) -> None:
    """Nonsense in one column is nothing said there, and the next look puts right what it knows."""
    store = place.store()
    store.registry.take([entry("a", notes="n", aliases=("x",)), entry("b")], 1)
    place.close()
    change(
        place.database,
        "UPDATE model SET places = 'x', compatible = '{}', aliases = '[7', tags = '[1, \"t\"]', usage_count = 'many', "
        "last_used_us = 'noon', load_s = 'long', format = 'of-tomorrow', purpose = 7, estimate_bytes = 'big', "
        "parts = 'all', trained_context = x'00', digest = 5, stamp = CAST(x'ff' AS TEXT) WHERE id = 1",
        "DELETE FROM scan",
    )
    registry = place.store().registry
    a, b = registry.entries()
    assert (a.name, a.found.path, a.found.format, a.tags) == ("a", "/models/a.gguf", Format.OTHER, ("t",))
    assert (a.usage_count, a.last_used_us, a.load_s, a.estimate_bytes, a.aliases) == (0, None, None, None, ())
    assert b == replace(entry("b"), id=2, first_seen_us=1)
    registry.used({1: (1, 5, 2.0)})
    taken = registry.take([replace(entry("a"), id=1), b], 9)
    assert taken[0].found == found("a") and taken[0].usage_count == 1 and taken[0].notes == "n"
    assert {one.last_scanned_us for one in taken} == {9}
    assert place.again().registry.entries() == taken and place.told == []


def test_many_threads_lose_no_use(place: Where) -> None:
    """Looks, uses and words from as many threads as the engine has, and entries of the event log between them."""
    store = place.store()
    ids = [one.id for one in store.registry.take([entry(f"m{number}") for number in range(4)], 1)]

    def work(number: int) -> None:
        for turn in range(20):
            store.registry.used({ids[number % 4]: (1, turn, None)})
            store.registry.take(store.registry.entries(), number * 100 + turn)
            store.learned(f"{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [one.usage_count for one in place.again().registry.entries()] == [40] * 4
    assert place.told == []


def test_it_is_there_without_being_used(place: Where) -> None:
    """Whoever wants the records of engines alone makes no database."""
    store: FileStore = place.store()
    assert store.registry is store.registry
    store.close()
    assert not place.state.exists()
