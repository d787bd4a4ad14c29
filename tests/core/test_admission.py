"""Whether a model may be loaded now, and where: what cannot be read is not taken for nothing."""

import pytest

from gpud.core import admission, budget
from gpud.core.errors import GpuUnavailable
from gpud.core.facts import HOST, BudgetLimits, EngineSettings, GpuSample, Model
from gpud.core.quote import Quote

GIB = 1 << 30


@pytest.mark.parametrize(
    "model", [Model("a", "x"), Model("a", "x", gpu=HOST), Model("a", "x", EngineSettings(layers="0"))]
)
def test_host_memory_that_cannot_be_read_is_said_to_be_so(model: Model) -> None:
    """Not that it is too small."""
    sample = GpuSample(HOST, "host memory", 0, HOST, health="the kernel does not tell")
    device = admission.Device(sample, budget.account(sample, BudgetLimits(), ()))
    verdict = admission.decide(admission.Wish.load(model, Quote.simple(GIB)), [device])
    assert isinstance(verdict, admission.Refused)
    assert isinstance(verdict.error, GpuUnavailable)
    assert verdict.error.message == 'cannot load "a": host memory: the kernel does not tell'
    nothing = admission.Wish.load(model, Quote.simple(0))
    assert isinstance(admission.decide(nothing, [device]), admission.Granted)
