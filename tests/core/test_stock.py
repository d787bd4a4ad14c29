"""Very many models in little: what goes in comes out, and what is alike is there once."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from gpud.core.facts import EngineSettings, HttpCall, Model, Priority
from gpud.core.record import replace
from gpud.core.stock import Stock

TEXTS = st.sampled_from(("", "/a/one.gguf", "/b/two.gguf"))
SETTINGS = st.builds(
    EngineSettings,
    file=TEXTS,
    context=st.sampled_from((None, 4096)),
    mmproj=TEXTS,
    draft_file=TEXTS,
    ollama_name=st.sampled_from(("", "llama3.2:3b")),
    unload=st.sampled_from((None, HttpCall("POST", "/free", {"all": True}))),
)
ALIASES = st.sampled_from(((), ("short",), ("short", "other")))


@st.composite
def models(draw: st.DrawFn) -> Model:
    def one(name: str) -> Model:
        return Model(
            name,
            draw(st.sampled_from(("llama_server", "ollama"))),
            draw(SETTINGS),
            draw(ALIASES),
            priority=draw(st.sampled_from(Priority)),
        )

    name = draw(st.sampled_from(("a", "b", "c")))
    others = tuple(one(name) for _ in range(draw(st.integers(0, 2))))
    return replace(one(name), alternatives=others)


MODELS = st.lists(models(), max_size=6).map(lambda made: {model.name: model for model in made})


@given(MODELS)
def test_each_model_comes_out_as_it_went_in(made: dict[str, Model]) -> None:
    """With all of its ways, whatever of it is shared."""
    stock = Stock(made)
    assert dict(stock) == made
    assert list(stock) == list(made) and len(stock) == len(made)
    assert stock == made and stock == Stock(made)
    for name, model in made.items():
        assert stock.file_of(name) == model.settings.file
        assert stock.aliases_of(name) == model.aliases


@given(MODELS, MODELS)
def test_others_are_as_they_are_wherever_they_come_from(made: dict[str, Model], others: dict[str, Model]) -> None:
    """Taken over from what was there or changed one by one: it comes to the same."""
    stock, wanted = Stock(made), Stock(others)
    assert dict(stock.becoming(wanted)) == others
    gone = [name for name in made if name not in others]
    assert dict(stock.changed(others, gone)) == others
    assert dict(stock.changed(others)) == made | others
    for result in (stock.becoming(wanted), stock.changed(others, gone), stock.changed(others)):
        anew = Stock(dict(result))
        assert {alias: result.meaning(alias) for alias in result.aliases()} == {
            alias: anew.meaning(alias) for alias in anew.aliases()
        }
    assert (stock == wanted) == (made == others)
    for name in made.keys() | others.keys():
        assert stock.same(wanted, name) == (made.get(name) == others.get(name))


def test_what_nothing_differs_from_is_the_very_same() -> None:
    """So that a look that finds nothing new leaves nothing else in memory than was there."""
    made = {f"m{number}": Model(f"m{number}", "e", EngineSettings(file=f"/m{number}.gguf")) for number in range(9)}
    stock = Stock(made)
    assert stock.becoming(Stock(made)) is stock
    more = Stock(made | {"new": Model("new", "e", EngineSettings(file="/new.gguf"))})
    assert [*stock.becoming(more)] == [*made, "new"]


def test_a_stock_is_no_other_than_a_mapping_of_the_same() -> None:
    """And nothing that is no mapping."""
    made = {"a": Model("a", "e")}
    assert Stock(made) != {"a": Model("a", "f")}
    assert Stock(made) != {}
    assert Stock(made) != ["a"]


def test_what_is_alike_is_the_very_same_whenever_it_came() -> None:
    """Also beside what came from elsewhere; one that is like no other has itself for its pattern."""

    def one(name: str) -> Model:
        return Model(name, "e", EngineSettings(file=f"/{name}.gguf"))

    stock = Stock({"a": one("a")})
    pattern = stock.pattern("a")
    for later in (
        stock.changed({"b": one("b")}),
        Stock({"c": Model("c", "f")}).becoming(stock).changed({"b": one("b")}),
        stock.becoming(Stock({"b": one("b")})),
    ):
        assert later.pattern("b") is pattern
    unlike = Model("u", "e", EngineSettings(unload=HttpCall("POST", "/free", {"all": True})))
    assert Stock({"u": unlike}).pattern("u") is unlike


def test_a_name_is_found_by_an_alias() -> None:
    """The first that has it; a name of its own goes first."""
    stock = Stock({"a": Model("a", "e", aliases=("x", "b")), "b": Model("b", "e", aliases=("x", "y"))})
    assert [stock.meaning(name) for name in ("a", "b", "x", "y", "z")] == ["a", "b", "a", "b", None]
    assert set(stock.aliases()) == {"x", "b", "y"}
    assert [stock.owner(name) for name in ("b", "y", "z")] == ["b", "b", ""]


def test_thousands_that_are_alike_take_little() -> None:
    """Beside name and path, what a model costs is one entry of a dictionary and one pair."""
    many = 5000
    paths = [f"/models/{number}.gguf" for number in range(many)]
    ways = (Model("", "embedded", EngineSettings(context=4096)),)

    def made() -> list[Model]:
        return [
            Model(
                f"m{number}",
                "llama_server",
                EngineSettings(file=path, context=4096),
                alternatives=tuple(
                    replace(way, name=f"m{number}", settings=replace(way.settings, file=path)) for way in ways
                ),
            )
            for number, path in enumerate(paths)
        ]

    stock = Stock((model.name, model) for model in made())
    assert len({id(stock.pattern(name)) for name in stock}) == 1
    kept = stock._kept
    held = sys.getsizeof(kept) + sum(map(sys.getsizeof, kept.values()))
    assert held / many < 150, f"{held / many:.0f} bytes a model beside its name and its path"
