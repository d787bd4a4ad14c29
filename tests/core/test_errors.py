"""What errors are called, and what they carry for whoever shows them."""

import re

import pytest

from gpud.core import errors
from gpud.core.errors import BackendFailed, BudgetExceeded, ConfigInvalid, GpudError, QueueFull

KINDS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, GpudError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_called_as_its_class(kind: type[GpudError]) -> None:
    """Bus, HTTP and exit statuses go by the code: it is the name in lower case, with a dash between words."""
    words = re.findall("[A-Z][a-z]+", kind.__name__)
    assert kind.code == ("failed" if kind is GpudError else "-".join(words).lower())


def test_a_surface_with_one_line_gets_the_sentence_and_what_to_do() -> None:
    """Without a hint, the sentence alone; which is what the error says of itself in any case."""
    bare, hinted = GpudError("it is broken"), GpudError("it is broken", hint="mend it")
    assert (bare.text, bare.message, bare.hint, str(bare)) == ("it is broken", "it is broken", "", "it is broken")
    assert (hinted.text, hinted.hint, str(hinted)) == ("it is broken; mend it", "mend it", "it is broken")


def test_errors_carry_what_others_count_with() -> None:
    """Bytes, a time to ask again, the last lines, every problem of a file; where nobody says, next to nothing."""
    exceeded = BudgetExceeded("no", need_bytes=5, available_bytes=3, hint="less")
    assert (exceeded.need_bytes, exceeded.available_bytes, exceeded.hint) == (5, 3, "less")
    assert (QueueFull("no").retry_after_s, QueueFull("no", retry_after_s=7.0, hint="wait").text) == (5.0, "no; wait")
    assert QueueFull("no", retry_after_s=7.0).retry_after_s == 7.0
    plain, full = BackendFailed("no"), BackendFailed("no", hint="h", kind="oom-gpu", tail=["a", "b"], preflight=True)
    assert (plain.hint, plain.kind, plain.tail, plain.preflight) == ("", "", (), False)
    assert (full.hint, full.kind, full.tail, full.preflight) == ("h", "oom-gpu", ("a", "b"), True)
    invalid = ConfigInvalid(["one", "two"])
    assert (invalid.problems, invalid.message) == (("one", "two"), "one\ntwo")
