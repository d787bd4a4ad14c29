"""What a model is taken to need while nothing is known but the size of its file."""

from hypothesis import given
from hypothesis import strategies as st

from gpud.core.estimate.guess import first_guess

MIB = 1 << 20
GIB = 1 << 30
sizes = st.integers(0, 200 * GIB)
contexts = st.integers(1, 1 << 20)


def test_a_usual_model_is_guessed_to_the_third() -> None:
    """Llama 3.1 8B as Q4_K_M with a context of 4096 takes 5.6 GiB of a GPU, and of 32768 9.3 GiB."""
    file_bytes = 4_920_000_000
    assert 5.6 * GIB * 2 / 3 < first_guess(file_bytes, 4096) < 5.6 * GIB * 4 / 3
    assert 9.3 * GIB * 2 / 3 < first_guess(file_bytes, 32768) < 9.3 * GIB * 4 / 3


@given(sizes, contexts)
def test_a_guess_is_above_the_file_and_what_every_engine_takes(file_bytes: int, context: int) -> None:
    """And bounded by twice the file and that: a small model has small keys and values."""
    guess = first_guess(file_bytes, context)
    assert guess >= file_bytes * 1.05 + 384 * MIB
    assert guess <= 2 * max(file_bytes * 1.05, 64 * MIB) + 384 * MIB + 1


@given(sizes, contexts, contexts)
def test_more_context_is_guessed_to_need_no_less(file_bytes: int, one: int, other: int) -> None:
    """For each token 128 KiB, until keys and values are as large as the weights."""
    less, more = (first_guess(file_bytes, context) for context in sorted((one, other)))
    assert less <= more
    assert more - less <= abs(one - other) * 128 * 1024


def test_a_context_that_is_not_given_is_that_of_most_engines() -> None:
    """4096 tokens."""
    assert first_guess(8 * GIB, None) == first_guess(8 * GIB, 4096)
    assert first_guess(8 * GIB, 4097) - first_guess(8 * GIB, 4096) == 128 * 1024


def test_a_file_that_is_not_there_is_guessed_as_a_small_model() -> None:
    """A CUDA context, and some keys and values."""
    assert first_guess(None, None) == first_guess(0, 4096) == 448 * MIB
