"""Which file is read ahead."""

from gpud.core import events

from .world import ALICE, GIB, World, model


def used(w: World, *names: str) -> None:
    """Each is used for a second, with ten seconds between."""
    for name in names:
        w.load(name, ALICE, use=True)
        w.settle()
        w.pass_time(1)
        w.post(events.UseEnded(name))
        w.pass_time(9)


def read_ahead(w: World) -> list[str]:
    return [action.model.name for action in w.told if isinstance(action, events.Warm)]


def three(size: int = 5 * GIB) -> World:
    return World({name: model(name) for name in "abc"}, dict.fromkeys("abc", size))


def test_the_model_that_is_used_in_turn_is_read_ahead_while_the_other_works() -> None:
    """It had to go for the other, and comes back as it always did."""
    w = three()
    used(w, "a", "b", "a", "b")

    assert read_ahead(w)[:1] == ["a"]
    assert "c" not in read_ahead(w)


def test_the_same_file_is_not_read_again_at_once() -> None:
    """It is in memory."""
    w = three()
    used(w, *"abababab")

    assert read_ahead(w).count("a") == 1
    assert read_ahead(w).count("b") == 1


def test_what_was_never_used_is_not_read_ahead() -> None:
    """Nothing is known of it."""
    w = three()
    used(w, "a", "a")

    assert read_ahead(w) == []


def test_nothing_is_read_while_somebody_waits_for_memory() -> None:
    """The disk is theirs."""
    w = three()
    used(w, "a", "b")
    before = len(read_ahead(w))
    w.post(events.UseBegan("b"))
    w.load("c")
    w.load("a", use=True)
    w.settle()

    assert len(read_ahead(w)) == before
