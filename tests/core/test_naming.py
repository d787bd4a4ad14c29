"""Names of models that were found: each its own, and the same one for ever."""

from hypothesis import given
from hypothesis import strategies as st

from gpud.core import naming
from gpud.core.catalogue import Entry, Format, Found, Place, Source
from gpud.core.record import replace


def found(path: str, name: str = "", source: Source = Source.FOLDER, *, size_bytes: int = 1, digest: str = "") -> Found:
    name = name or path.rsplit("/", 1)[-1].removesuffix(".gguf")
    return Found((Place(path, source, name),), Format.GGUF, f"{path} of {size_bytes}", size_bytes, digest=digest)


def named(*models: Found, known: tuple[Entry, ...] = (), configured: dict[str, str] | None = None) -> list[str]:
    taken = set((configured or {}).values())
    return [one.name for one in naming.name_all(models, known, configured or {}, taken)]


def entry(id_: int, name: str, one: Found) -> Entry:
    return Entry(id_, name, one)


def test_who_asks_for_what_is_not_there_is_told_what_is() -> None:
    """A few of many; the one; or how to get one."""
    told = [naming.those_there([f"m{i}" for i in range(number)]) for number in (0, 1, 2, 10, 12)]
    assert told == [
        'there are no models: "gpudctl models list" says how to get one',
        'the only one is "m0"',
        "there are m0, m1",
        "there are m0, m1, m2, m3, m4, m5, m6, m7, m8, m9",
        "there are m0, m1, m2, m3, m4, m5, m6, m7, m8, m9 and 2 more",
    ]


def test_a_model_is_called_what_its_file_is_called() -> None:
    """Signs that no name may have become a dash; Ollama's ``:latest`` is left out."""
    assert named(found("/m/qwen3-8b.gguf")) == ["qwen3-8b"]
    assert named(found("/m/my model (2).gguf")) == ["my-model-2"]
    assert named(found("/blobs/sha256-1", "llama3.2:latest", Source.OLLAMA)) == ["llama3.2"]
    assert named(found("/blobs/sha256-1", "llama3.2:3b", Source.OLLAMA)) == ["llama3.2:3b"]
    assert named(found("/m/\udcff\n.gguf")) == ["model"]


def test_equal_stems_in_different_folders_are_told_apart_by_their_folders() -> None:
    """By as much of the path as is needed."""
    a, b, c = found("/m/x/model.gguf"), found("/m/y/model.gguf"), found("/n/y/model.gguf")
    assert named(a, b, c) == ["model", "y/model", "n/y/model"]


def test_a_name_stays_when_another_model_comes_that_is_called_so() -> None:
    """Whichever is found first this time."""
    old, new = found("/m/z/model.gguf"), found("/m/a/model.gguf")
    assert named(new, old, known=(entry(1, "model", old),)) == ["a/model", "model"]


def test_a_model_that_was_moved_is_the_same_one() -> None:
    """By its digest where there is one, else by its name, size and kind."""
    before = found("/m/old/model.gguf", size_bytes=7)
    assert named(found("/m/new/model.gguf", size_bytes=7), known=(entry(1, "best", before),)) == ["best"]
    (one,) = naming.name_all((found("/m/new/model.gguf", size_bytes=8),), (entry(1, "model", before),), {}, ())
    assert one.name == "new/model" and one.known is None
    digested = found("/hub/a.gguf", digest="ab")
    assert named(found("/m/b.gguf", digest="ab"), known=(entry(1, "a", digested),)) == ["a"]


def test_a_model_that_was_renamed_is_the_same_one() -> None:
    """The very file has another name; by that it can be asked for, too."""
    before = found("/m/first.gguf", size_bytes=7)
    after = replace(found("/m/second.gguf", size_bytes=7), stamp=before.stamp)
    (one,) = naming.name_all((after,), (entry(1, "first", before),), {}, ())
    assert one.name == "first" and one.known is not None
    assert naming.other_names([entry(1, "first", after)], ()) == {"first": ("second",)}
    unseen = replace(before, stamp="")
    assert named(replace(after, stamp=""), known=(entry(1, "first", unseen),)) == ["second"]


def test_the_name_of_one_that_is_gone_is_kept_for_it() -> None:
    """Another model of the same stem is called differently, as long as it can be."""
    gone = entry(1, "model", found("/m/usb/model.gguf", size_bytes=5))
    assert named(found("/m/disk/model.gguf", size_bytes=6), known=(gone,)) == ["disk/model"]


def test_the_configuration_says_what_its_files_are_called() -> None:
    """Its names are no other's, and what was known of the file stays with it."""
    one = found("/m/model.gguf")
    known = (entry(4, "model", one),)
    (mine,) = naming.name_all((one,), known, {"/m/model.gguf": "best"}, {"best"})
    assert (mine.name, mine.known) == ("best", known[0])
    assert named(found("/m/best.gguf"), configured={"/other.gguf": "best"}) == ["m/best"]


def test_words_that_surfaces_use_are_no_names() -> None:
    """``/models/scan`` must not mean a model."""
    assert named(found("/m/scan.gguf")) == ["m/scan"]


def test_other_places_give_other_names_that_nobody_else_has() -> None:
    """A model in a folder and in Ollama's store answers to both."""
    both = replace(
        found("/m/llama-3b.gguf"),
        places=(
            Place("/m/llama-3b.gguf", Source.FOLDER, "llama-3b"),
            Place("/blobs/1", Source.OLLAMA, "llama3.2:latest"),
        ),
    )
    other = entry(2, "llama3.2", found("/m/llama3.2.gguf"))
    assert naming.other_names((entry(1, "llama-3b", both),), ()) == {"llama-3b": ("llama3.2", "llama3.2:latest")}
    assert naming.other_names((entry(1, "llama-3b", both), other), ()) == {"llama-3b": ("llama3.2:latest",)}
    assert naming.other_names((entry(1, "llama-3b", both),), {"llama3.2"}) == {"llama-3b": ("llama3.2:latest",)}


STEMS = st.sampled_from(["a", "b", "model", "scan", "", " ", "\udcff", "x" * 200, "ünïcode", "-", "a/b"])
FOLDERS = st.sampled_from(["/m", "/m/x", "/m/y", "/n/x", "/"])
MODELS = st.lists(st.tuples(FOLDERS, STEMS, st.integers(1, 3)), max_size=12, unique_by=lambda one: one[:2]).map(
    lambda all_: [
        found(f"{folder.rstrip('/')}/{stem}.gguf", stem or "?", size_bytes=size) for folder, stem, size in all_
    ]
)


@given(MODELS, MODELS)
def test_every_model_has_one_usable_name_and_keeps_it(first: list[Found], second: list[Found]) -> None:
    """Whatever there is, and in whatever order it is found again, with others beside it."""
    names = naming.name_all(first, (), {}, ())
    assert len({one.name for one in names}) == len(first)
    assert all(naming.usable(one.name) == one.name and one.name not in naming.COMMANDS for one in names)
    known = tuple(Entry(number, one.name, one.found) for number, one in enumerate(names, 1))
    together = first + [one for one in second if one.path not in {other.path for other in first}]
    again = naming.name_all(together[::-1], known, {}, ())
    assert len({one.name for one in again}) == len(together)
    by_path = {one.found.path: one.name for one in again}
    assert all(by_path[one.found.path] == one.name for one in names)


def test_whatever_else_is_taken_a_number_tells_models_apart() -> None:
    """When every part of its path is somebody's, from 2 on; a name stays within its length."""
    one = found("/m/model.gguf")
    taken = {"model", "m/model"}
    assert [n.name for n in naming.name_all((one,), (), {}, taken)] == ["model-2"]
    assert [n.name for n in naming.name_all((one,), (), {}, {*taken, "model-2", "model-3"})] == ["model-4"]
    long = "x" * 3 * naming.LONGEST
    paths = [found(f"/{long}/{long}.gguf", f"{long}") for _ in range(3)]
    names = named(*paths)
    assert len(set(names)) == 3
    assert [len(name) <= naming.LONGEST for name in names] == [True] * 3
    assert names[0] == "x" * naming.LONGEST
    assert names[1:] == [f"{'x' * (naming.LONGEST - 8)}-{number}" for number in (2, 3)]


def test_a_name_that_nobody_has_now_is_left_to_who_may_come_back() -> None:
    """As long as another name is free; else it is given away."""
    one, away = found("/m/model.gguf"), entry(1, "model", found("/elsewhere/model.gguf", size_bytes=9))
    assert named(one, known=(away,)) == ["m/model"]
    assert [n.name for n in naming.name_all((one,), (), {}, {"m/model"}, {"model"})] == ["model"]


def test_a_configured_model_takes_its_past_with_it() -> None:
    """By the configured name, or by where it lies; nobody else gets that past."""
    one, other = found("/m/a.gguf", size_bytes=4), found("/m/b.gguf", size_bytes=4, digest="d")
    old = entry(1, "b", found("/m/b.gguf", size_bytes=4, digest="d"))
    configured = {"/m/b.gguf": "best"}
    names = naming.name_all((one, other), (old,), configured, {"best"})
    assert [(n.name, n.known) for n in names] == [("a", None), ("best", old)]
    renamed = naming.name_all((found("/m/c.gguf", digest="d"), other), (old,), configured, {"best"})
    assert [(n.name, n.known) for n in renamed] == [("c", None), ("best", old)]


def test_of_two_with_one_past_the_first_has_it() -> None:
    """And those that come after it are still looked at."""
    old = entry(1, "old", found("/m/old.gguf", digest="d"))
    other = entry(2, "other", found("/m/other.gguf", digest="e"))
    first, second, third = (found(f"/n/{n}.gguf", digest=d) for n, d in (("x", "d"), ("y", "d"), ("z", "e")))
    names = naming.name_all((first, second, third), (old, other), {}, ())
    assert [(n.name, n.known) for n in names] == [("old", old), ("y", None), ("other", other)]


def test_a_models_other_places_are_its_other_names() -> None:
    """Unless somebody is called so."""
    places = (Place("/m/a.gguf", Source.FOLDER, "a"), Place("/o/b", Source.OLLAMA, "b:latest"))
    one = replace(found("/m/a.gguf"), places=places)
    assert naming.other_names([entry(1, "a", one)], ()) == {"a": ("b", "b:latest")}
    assert naming.other_names([entry(1, "a", one)], ("b",)) == {"a": ("b:latest",)}
    assert naming.other_names([entry(1, "a", one), entry(2, "b", found("/m/b.gguf"))], ()) == {"a": ("b:latest",)}
    assert naming.other_names([entry(1, "a", found("/m/a.gguf"))], ()) == {}


def test_a_path_that_is_no_text_is_shown_with_its_bytes() -> None:
    """What is text stays as it is."""
    assert naming.shown_path("/m/süß.gguf") == "/m/süß.gguf"
    assert naming.shown_path("/m/\udcff.gguf") == "/m/\\xff.gguf"
