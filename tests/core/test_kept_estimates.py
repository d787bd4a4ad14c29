"""What the formula says of published models, to the byte: a change that moves a figure says which, and on purpose."""

import pytest

from core.kept_estimates import PLANS, kept, of_architecture, of_draft, of_encoder, of_model, of_projectors
from core.model_headers import ENCODERS, HEADERS
from gpud.core.estimate.architectures import ARCHITECTURES

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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_estimated_by_its_own_rules(name: str) -> None:
    """The same file, as if it were of each in turn, and what else files say of windows, states and experts."""
    assert of_architecture(name) == KEPT[f"as {name}"]


def test_a_projector_is_estimated_by_its_own_rules() -> None:
    """How many pieces of a picture the engine makes ready for differs by its kind."""
    assert of_projectors() == KEPT["as each projector"]


def test_no_figure_is_kept_of_what_is_no_longer_there() -> None:
    """And each is of the plans that are tried."""
    with_others = [*(f"with {kind}" for kind in ENCODERS), "with a draft"]
    assert set(KEPT) == {*HEADERS, *with_others, *(f"as {name}" for name in ARCHITECTURES), "as each projector"}
    assert {plan for name in HEADERS for plan in KEPT[name]} == set(PLANS)
