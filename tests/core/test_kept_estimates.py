"""What the formula says of published models, to the byte: a change that moves a figure says which, and on purpose."""

import pytest

from core.kept_estimates import PLANS, kept, of_architectures, of_draft, of_encoder, of_model
from core.model_headers import ENCODERS, HEADERS

KEPT = kept()


@pytest.mark.parametrize("name", HEADERS)
def test_a_published_model_is_estimated_as_before(name: str) -> None:
    """On GPUs and without, in parts, with other caches, batches, sequences: each part on each device."""
    assert of_model(name) == KEPT[name]


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_estimated_as_before(kind: str) -> None:
    """Beside the model that looks through it."""
    assert of_encoder(kind) == KEPT[f"with {kind}"]


def test_a_draft_model_is_estimated_as_before() -> None:
    """With the context and the sequences of the one that it drafts for."""
    assert of_draft() == KEPT["with a draft"]


def test_every_architecture_is_estimated_by_its_own_rules() -> None:
    """One file, as if it were of each in turn."""
    assert of_architectures() == KEPT["as each architecture"]


def test_no_figure_is_kept_of_what_is_no_longer_there() -> None:
    """And each is of the plans that are tried."""
    assert set(KEPT) == {*HEADERS, *(f"with {kind}" for kind in ENCODERS), "with a draft", "as each architecture"}
    assert {plan for name in HEADERS for plan in KEPT[name]} == set(PLANS)
