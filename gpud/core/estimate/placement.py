"""Which layer goes to which device, as llama.cpp decides it."""

import math
from collections.abc import Sequence

from gpud.core.plan import Plan

HOST = -1


def devices_of_layers(plan: Plan, layers: int) -> list[int]:
    """The GPU of each layer, and of the output after them; :data:`HOST` for what stays in the machine's own memory.

    ``layers`` counts all of the file, those for drafts included. What is on a GPU are the last of them; the output
    goes first. Several GPUs take consecutive layers in proportion to their shares.
    """
    on_gpu = min(max(plan.layers, 0), layers + 1) if plan.gpus else 0
    first = layers + 1 - on_gpu
    bounds = cumulative_shares(plan)
    return [_device(plan, bounds, number - first, on_gpu) for number in range(layers + 1)]


def _device(plan: Plan, bounds: Sequence[float], position: int, on_gpu: int) -> int:
    if position < 0:
        return HOST
    if plan.gpus == 1 or plan.split_mode == "none":
        return only_gpu(plan)
    part = single(position / on_gpu)
    return next((gpu for gpu, bound in enumerate(bounds) if bound > part), plan.gpus - 1)


def only_gpu(plan: Plan) -> int:
    """The GPU that a model is on which is not split."""
    return plan.main_gpu if plan.split_mode == "none" and 0 <= plan.main_gpu < plan.gpus else 0


def shares(plan: Plan) -> tuple[float, ...]:
    """What each GPU is to have, in any unit. Without a word llama.cpp goes by what is free, which is not known here:
    equal parts then."""
    given = [share if math.isfinite(share) and share > 0 else 0.0 for share in plan.tensor_split[: plan.gpus]]
    if not any(given):
        return (1.0,) * plan.gpus
    return (*given, *(0.0,) * (plan.gpus - len(given)))


def cumulative_shares(plan: Plan) -> list[float]:
    """Where each GPU's part of all layers ends, in the single precision that llama.cpp works with."""
    total = 0.0
    sums = []
    for share in shares(plan):
        total = single(total + single(share))
        sums.append(total)
    return [single(one / total) for one in sums]


def single(value: float) -> float:
    """The nearest number of single precision."""
    if value == 0 or not math.isfinite(value):
        return value
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * (1 << 24)), exponent - 24)
