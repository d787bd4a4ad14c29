"""Which engines a caller may name for one load, and what gpud knows of its own."""

import pytest

from gpud.core.engine_wish import MOST_ENGINES, check_served, engines_wished
from gpud.core.engines import BY_NAME, ORDER, Family, family, of_family
from gpud.core.errors import InvalidOption

from .world import model

TWO_WAYS = model("a", alternatives=(model("a", engine="ollama"),))


def test_engines_are_tried_in_the_order_in_which_they_are_named() -> None:
    """Each once, however often it is named; none leaves the choice to gpud."""
    assert engines_wished(["vllm", "llama_server", "vllm"]) == ("vllm", "llama_server")
    assert engines_wished([]) == ()


def test_so_many_engines_may_be_named_and_no_more() -> None:
    """One that is named twice counts once."""
    names = [f"engine{number}" for number in range(MOST_ENGINES)]
    assert engines_wished([*names, *names]) == tuple(names)
    with pytest.raises(InvalidOption, match=f"engines names {MOST_ENGINES + 1} engines, the limit is {MOST_ENGINES}"):
        engines_wished([*names, "one-more"])


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "ä", "a" * 65, "a\n"])
def test_what_is_no_engines_name_is_refused(name: str) -> None:
    """It is shown in a line of its own, and not at full length."""
    with pytest.raises(InvalidOption) as refused:
        engines_wished(["llama_server", name])
    assert f"engines has {name[:64]!a}, which is no engine's name" in refused.value.message
    assert "gpud.yaml" in refused.value.hint
    assert engines_wished(["a" * 64]) == ("a" * 64,)


@pytest.mark.parametrize("wished", [(), ("llama_server",), ("ollama",), ("vllm", "ollama")])
def test_one_engine_that_serves_the_model_is_enough(wished: tuple[str, ...]) -> None:
    """As configured first, or as one of its alternatives; and without a wish there is nothing to check."""
    check_served(TWO_WAYS, wished)
    with pytest.raises(InvalidOption):
        check_served(TWO_WAYS, ("tgi",))


def test_engines_that_do_not_serve_the_model_are_refused_with_those_that_do() -> None:
    """So that the caller knows what to name."""
    with pytest.raises(InvalidOption) as refused:
        check_served(TWO_WAYS, ("vllm", "tgi"))
    assert refused.value.message == 'cannot load "a" with vllm or tgi: it is configured for llama_server, ollama'


def test_engines_of_a_family_come_with_the_first_choice_first() -> None:
    """The model's format says which families there are to choose from; a custom engine is chosen by nobody."""
    assert of_family(Family.HUB) == ("vllm", "tgi")
    assert of_family(Family.OLLAMA, Family.HUB) == ("ollama", "vllm", "tgi")
    assert of_family() == ()
    assert set(BY_NAME) - set(ORDER) == set(of_family(Family.CUSTOM)) == {"custom"}
    assert ORDER[0] == of_family(Family.LLAMA_CPP)[0] == "llama_server"
    assert family("vllm") is Family.HUB
    assert family("of-another-package") is None


def test_every_engine_of_gpud_has_a_program_or_a_package() -> None:
    """By one of them it is found; a custom one says itself what it runs. What a package brings has a name in pip."""
    for kind in BY_NAME.values():
        found_by = bool(kind.program) + bool(kind.package)
        assert found_by == (kind.family is not Family.CUSTOM), kind.name
        assert bool(kind.extra) == bool(kind.package), kind.name
        assert not kind.all_flags or kind.family is Family.LLAMA_CPP, kind.name
