"""Memory on its way back, device by device, by what is told of each."""

from gpud.core.returning import Expected, Returning


def gone(size: int, before: int | None = 0, device: str = "GPU-0", until_s: float = 10.0) -> Expected:
    return Expected(device, size, "a", before, until_s)


def test_it_is_back_when_three_quarters_of_it_are_seen() -> None:
    """A driver may keep a little; a byte less is not enough."""
    back = Returning()
    back.expect(gone(400, before=1000))
    assert back.seen({"GPU-0": 1299}, 1.0) == []
    assert back.bytes("GPU-0") == 400
    assert back.pending()
    assert back.seen({"GPU-0": 1300}, 1.0) == []
    assert not back.pending()


def test_what_two_have_left_has_to_come_back_twice() -> None:
    """Nothing is taken for the return of both; who went first is back first."""
    back = Returning()
    back.expect(gone(400, before=1000))
    back.expect(gone(200, before=1000))
    back.seen({"GPU-0": 1400}, 1.0)
    assert back.bytes("GPU-0") == 200
    back.seen({"GPU-0": 1549}, 1.0)
    assert back.bytes("GPU-0") == 200
    back.seen({"GPU-0": 1550}, 1.0)
    assert not back.pending()


def test_the_second_waits_behind_what_the_first_has_not_given_back() -> None:
    """Else a part of the first one's would be taken for it; when the first is given up, what came is the second's."""
    back = Returning()
    back.expect(gone(400, before=1000))
    back.expect(gone(200, before=1000, until_s=20.0))
    back.seen({"GPU-0": 1200}, 1.0)
    assert back.bytes("GPU-0") == 600
    late = back.seen({"GPU-0": 1200}, 10.0)
    assert [one.bytes for one in late] == [400]
    assert back.bytes("GPU-0") == 0


def test_what_does_not_come_in_time_is_told_once() -> None:
    """Not before its time."""
    back = Returning()
    back.expect(gone(400, before=1000))
    assert back.seen({"GPU-0": 1000}, 9.9) == []
    assert [one.bytes for one in back.seen({"GPU-0": 1000}, 10.0)] == [400]
    assert back.seen({"GPU-0": 1000}, 11.0) == []
    assert not back.pending()


def test_nothing_is_waited_for_that_cannot_be_seen() -> None:
    """Nor what is nothing; those behind it are still looked at."""
    back = Returning()
    back.expect(gone(0))
    back.expect(gone(-5))
    assert not back.pending()
    back.expect(gone(400, before=None))
    back.expect(gone(300, device="GPU-1"))
    back.expect(gone(200, before=1000))
    back.expect(gone(1, before=0, device="GPU-2"))
    back.seen({"GPU-0": 1000, "GPU-1": None, "GPU-2": 0}, 1.0)
    assert [back.bytes(f"GPU-{number}") for number in range(3)] == [200, 0, 1]


def test_when_one_of_ours_leaves_the_level_falls_for_all_on_its_device() -> None:
    """What it held is told of the device no longer; not below nothing, and not elsewhere."""
    back = Returning()
    back.expect(gone(400, before=1000))
    back.expect(gone(400, before=1000, device="GPU-1"))
    back.left("GPU-0", 600)
    back.seen({"GPU-0": 700, "GPU-1": 1000}, 1.0)
    assert (back.bytes("GPU-0"), back.bytes("GPU-1")) == (0, 400)
    back.expect(gone(400, before=100))
    back.left("GPU-0", 600)
    back.seen({"GPU-0": 299, "GPU-1": 1000}, 1.0)
    assert back.bytes("GPU-0") == 400
    back.seen({"GPU-0": 300, "GPU-1": 1000}, 1.0)
    assert back.bytes("GPU-0") == 0
