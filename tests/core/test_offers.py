"""What an offer comes to, on GPUs and beside them; and which looks at the devices are begun for it."""

from hypothesis import given
from hypothesis import strategies as st

from gpud.core.errors import ConfigInvalid
from gpud.core.facts import HOST
from gpud.core.looks import Looks
from gpud.core.quote import ANY_GPU, Estimate, Offer, Part, Quote, Share, Source

shares = st.lists(st.builds(Share, st.sampled_from((HOST, ANY_GPU, "GPU-0", "GPU-1")), st.integers(0, 99)), max_size=5)


@given(shares)
def test_every_byte_is_on_a_gpu_or_in_host_memory(some: list[Share]) -> None:
    """What it is reserved for is its part on GPUs, or all of it where there is none."""
    offer = Offer(tuple(some))
    assert offer.gpu_bytes + offer.host_bytes == sum(share.bytes for share in some)
    assert offer.host_bytes == sum(share.bytes for share in some if share.device == HOST)
    assert offer.need_bytes == (offer.gpu_bytes if offer.gpu_bytes else offer.host_bytes)


@given(shares)
def test_placing_an_offer_changes_nothing_but_the_gpu_that_was_left_open(some: list[Share]) -> None:
    """In its order, with its bytes."""
    placed = Offer(tuple(some)).placed("GPU-7")
    assert [share.bytes for share in placed] == [share.bytes for share in some]
    assert [share.device for share in placed] == [share.device or "GPU-7" for share in some]


def test_parts_add_up() -> None:
    """To a device's total, to all of it, and to what grows with the context; unknown without parts."""
    parts = (Part("CUDA0", 0, 1, 2, 4, 8), Part("Host", None, 16, 32, 64, 128))
    assert [part.total_bytes for part in parts] == [15, 240]
    assert Estimate("llama", parts, Source.FORMULA).total_bytes == 255
    assert Offer((), parts=parts).kv_bytes == 2 + 4 + 32 + 64
    assert Offer(()).kv_bytes is None


def test_a_size_alone_is_an_offer_of_one_share() -> None:
    """On one GPU, or in host memory."""
    assert Quote.simple(7) == Quote((Offer((Share(ANY_GPU, 7),), Source.DECLARED),))
    assert Quote.simple(7, Source.GUESS, on_host=True) == Quote((Offer((Share(HOST, 7),), Source.GUESS),))


def test_one_urgent_look_is_under_way_at_a_time() -> None:
    """A second wish meanwhile is remembered, for the first may have begun too early; once, whoever asks."""
    looks = Looks()
    assert not looks.pending()
    assert looks.ask(0.0, 0.0)
    assert looks.pending()
    assert not looks.take_again()
    assert not looks.ask(1.0, 0.0)
    assert not looks.ask(2.0, 0.0)
    looks.came()
    assert not looks.pending()
    assert looks.take_again()
    assert not looks.take_again()
    assert looks.ask(3.0, 0.0)
    assert not looks.take_again()


def test_a_delayed_look_is_asked_for_unless_one_comes_as_early() -> None:
    """An urgent one does; a delayed one that is due later does not."""
    looks = Looks()
    assert looks.ask(0.0, 5.0)
    assert not looks.ask(0.0, 5.0)
    assert not looks.ask(1.0, 5.0)
    assert looks.ask(1.0, 2.0)
    assert not looks.ask(2.0, 1.0)
    looks.came()
    assert not looks.ask(4.9, 0.2), "the one of 5 s is still to come"
    assert looks.pending()
    looks.came()
    assert not looks.pending()
    assert looks.ask(6.0, 0.0)
    assert not looks.ask(6.0, 0.1)
    looks.came()
    assert looks.ask(6.0, 0.1)


def test_looks_that_are_slow_do_not_pile_up() -> None:
    """Each takes a hundred times as long as what it is asked for again after: a bounded number is under way."""
    looks = Looks()
    begun = sum(looks.ask(now, delay_s) for now in range(1000) for delay_s in (0.25, 0.1, 0.02, 0.0))
    assert begun <= 4


def test_a_configuration_that_cannot_be_used_says_all_that_is_wrong() -> None:
    """A sentence each."""
    error = ConfigInvalid(["one thing", "another"])
    assert error.problems == ("one thing", "another")
    assert str(error) == error.text == "one thing\nanother"
