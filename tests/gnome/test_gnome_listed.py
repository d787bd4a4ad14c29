"""Which models the preferences list, in both builds of the extension."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .gjs_programs import Program

MODELS = [{"Id": name} for name in ("zephyr", "qwen3-8b", "gemma-3-1b", "phi-4-mini")]


@pytest.fixture(scope="module")
def listing(build: Path, release: str) -> Iterator[Program]:
    with Program(build, release, "listed_program") as program:
        yield program


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """gjs is kept for the whole module."""


def test_favourites_come_before_the_others(listing: Program) -> None:
    """They in their order, gone or not; the others by name. Where all are listed there is nothing to search."""
    listing.say({"Models": MODELS}, ["phi-4-mini", "gone"], "", 30)
    assert listing.hear() == {
        "names": ["phi-4-mini", "gone", "gemma-3-1b", "qwen3-8b", "zephyr"],
        "unseen": 0,
        "searches": False,
    }


def test_more_than_fit_are_counted_and_searched(listing: Program) -> None:
    """Those that gpud left out count like those that the window leaves out."""
    listing.say({"Models": MODELS, "Others": 40}, ["zephyr"], "", 2)
    assert listing.hear() == {"names": ["zephyr", "gemma-3-1b", "qwen3-8b"], "unseen": 41, "searches": True}


def test_a_search_leaves_only_what_matches(listing: Program) -> None:
    """Favourites and loaded models, too, are listed by their names and aliases alone, in any case of letters."""
    models = [*MODELS, {"Id": "llama", "State": "ready", "Aliases": ["Mini-Llama"]}]
    listing.say({"Models": models}, ["zephyr", "phi-4-mini"], "MINI ", 30)
    assert listing.hear() == {"names": ["phi-4-mini", "llama"], "unseen": 0, "searches": True}


def test_a_search_may_find_nothing(listing: Program) -> None:
    """The field stays, so that something else can be searched for."""
    listing.say({"Models": MODELS}, ["zephyr"], "nothing", 30)
    assert listing.hear() == {"names": [], "unseen": 0, "searches": True}
