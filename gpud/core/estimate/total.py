"""The estimate itself: a file, a plan and what else is loaded beside it, added up by device."""

from gpud.core.estimate import cache, compute
from gpud.core.estimate.placement import HOST, devices_of_layers, only_gpu, shares
from gpud.core.estimate.projector import projector_bytes
from gpud.core.estimate.shape import Shape
from gpud.core.estimate.weights import GPU_ALIGNMENT, Place, Sizes, padded
from gpud.core.modelfile import ModelFile
from gpud.core.plan import Plan
from gpud.core.quote import Estimate, Part, Source
from gpud.core.record import Struct, replace

PIPELINE_COPIES = 4
"""Of all inputs, where several GPUs work on a model one after the other and nothing is left to the CPU."""

LOOKED_UP_COPIES = 12
"""Of what is looked up for each layer, then: an upper value, 4 to 19 were seen."""


def estimate(
    file: ModelFile | Shape,
    plan: Plan,
    *,
    draft: ModelFile | Shape | None = None,
    mmproj: ModelFile | None = None,
    adapter_bytes: int = 0,
) -> Estimate:
    """What llama.cpp will allocate for a model, by device.

    Weights, keys, values and states are exact; buffers are fitted values (see :mod:`gpud.core.estimate.compute`).
    Not in it is what the driver takes for itself. Whoever asks often passes ``Shape.of(file)``, made once.

    Raises UnknownArchitecture where there are no rules; the engine's own dry run decides then.
    """
    shape = Shape.of(file) if isinstance(file, ModelFile) else file
    cells = cache.cells(shape, plan)
    ledger = _Ledger(plan)
    _model(ledger, shape, plan, cells)
    if draft is not None:
        own = draft if isinstance(draft, Shape) else Shape.of(draft)
        _model(ledger, own, draft_plan(plan, cells), cache.cells(own, draft_plan(plan, cells)))
    if mmproj is not None:
        _projector(ledger, plan, mmproj)
    if adapter_bytes:
        _adapters(ledger, adapter_bytes)
    on_gpu = min(plan.layers, shape.count + 1) if plan.gpus else 0
    return Estimate(shape.architecture, ledger.parts(), Source.FORMULA, cells.context, max(on_gpu, 0))


def draft_plan(plan: Plan, cells: cache.Cells) -> Plan:
    """How the draft model is placed: as it says itself, with as much context and as many slots as the model has."""
    own = plan.draft or Plan()
    return replace(
        own,
        context=cells.context,
        parallel=cells.sequences,
        unified=cells.streams == 1,
        batch=plan.batch,
        micro_batch=plan.micro_batch,
        flash_attention=plan.flash_attention,
        gpus=plan.gpus,
        split_mode=plan.split_mode,
        tensor_split=plan.tensor_split,
        main_gpu=plan.main_gpu,
        kv_on_gpu=plan.kv_on_gpu,
        full_swa=plan.full_swa,
        embeddings=False,
    )


class _Sums(Struct):
    weights: int = 0
    kv: int = 0
    state: int = 0
    compute: int = 0


class _Ledger:
    """Sums by device; the machine's own memory is the last."""

    def __init__(self, plan: Plan) -> None:
        self.devices = [_Sums() for _ in range(plan.gpus + 1)]

    def __getitem__(self, device: int) -> _Sums:
        return self.devices[device]

    def parts(self) -> tuple[Part, ...]:
        names = [(f"CUDA{number}", number) for number in range(len(self.devices) - 1)]
        return tuple(
            Part(name, gpu, sums.weights, sums.kv, sums.state, sums.compute)
            for (name, gpu), sums in zip([*names, ("Host", None)], self.devices, strict=True)
        )


def _model(ledger: _Ledger, shape: Shape, plan: Plan, cells: cache.Cells) -> None:
    placed = devices_of_layers(plan, shape.count)
    stays = _weights(ledger, shape, plan, placed)
    for device, (kv, state) in zip(placed, cache.by_layer(shape, plan, cells), strict=False):
        if plan.split_mode == "tensor" and device != HOST and plan.kv_on_gpu:
            for gpu, (own_kv, own_state) in enumerate(zip(_split(kv, plan), _split(state, plan), strict=True)):
                ledger[gpu].kv += own_kv
                ledger[gpu].state += own_state
            continue
        target = ledger[device if plan.kv_on_gpu else HOST]
        target.kv += kv
        target.state += state
    _buffers(ledger, shape, plan, cells, placed, stays)


def _weights(ledger: _Ledger, shape: Shape, plan: Plan, placed: list[int]) -> int:
    """Add the weights; returns the size of the largest matrix that a GPU works with and does not hold."""
    weights = shape.weights(plan.override_tensors)
    stays = 0

    def add(device: int, found: Sizes) -> None:
        nonlocal stays
        if device == HOST:
            ledger[HOST].weights += found.host
            stays = max(stays, found.largest)
        elif plan.split_mode in ("row", "tensor"):
            for gpu, part in enumerate(_split(found.gpu, plan)):
                ledger[gpu].weights += part
        else:
            ledger[device].weights += found.gpu

    def add_place(place: Place, device: int, experts: int) -> None:
        add(device, place.movable)
        add(experts, place.experts)
        for buffer, found in place.pinned:
            add(_named(buffer, plan), found)

    add_place(weights.inputs, HOST, HOST)
    for number, place in enumerate(weights.places[:-1]):
        device = placed[number]
        add_place(place, device, HOST if number < plan.cpu_moe else device)
    repeating = stays
    add_place(weights.places[-1], placed[-1], placed[-1])
    for device in sorted(set(placed[:-1])):
        add(device, weights.everywhere)
    if weights.tied.host and (placed[-1] != HOST or weights.output_first or (weights.rearranged and not plan.gpus)):
        add(placed[-1], weights.tied)
    # A GPU does not copy the output to itself for the few tokens that one is computed for.
    return stays if plan.embeddings else repeating


def _named(buffer: str, plan: Plan) -> int:
    """The device that an override means: ``CUDA1``, or any name of the machine's own memory."""
    digits = buffer.rstrip("0123456789")
    number = buffer[len(digits) :]
    if digits in ("CUDA", "ROCm", "Vulkan", "SYCL", "HIP") and number and int(number) < plan.gpus:
        return int(number)
    return HOST


def _split(size: int, plan: Plan) -> list[int]:
    """A size by shares of the GPUs, to the byte."""
    parts = shares(plan)
    total = sum(parts)
    sums, done = [], 0.0
    for part in parts:
        done += part
        sums.append(int(size * (done / total)))
    sums[-1] = size
    return [end - start for start, end in zip([0, *sums], sums, strict=False)]


def _buffers(ledger: _Ledger, shape: Shape, plan: Plan, cells: cache.Cells, placed: list[int], stays: int) -> None:
    buffers = compute.buffers(shape, plan, cells)
    if not plan.gpus:
        ledger[HOST].compute += buffers.all
        return
    used = sorted({device for device in placed if device != HOST})
    everything = HOST not in placed and plan.cpu_moe == 0 and not plan.override_tensors and plan.kv_on_gpu
    pipelined = everything and len(used) > 1 and plan.split_mode == "layer"
    copies = PIPELINE_COPIES if pipelined else 1
    first = only_gpu(plan)
    # The first GPU also computes what is on none, with the weights copied to it when there is much to do.
    for gpu in sorted({first, *used}):
        target = ledger[gpu]
        target.compute += buffers.all + (copies - 1) * buffers.inputs
        if gpu == first:
            target.compute += padded(stays, GPU_ALIGNMENT)
        if pipelined:
            before, after = gpu != used[0], gpu != used[-1]
            target.compute += copies * (buffers.hidden * before + buffers.inner * (2 * before + after))
            target.compute += LOOKED_UP_COPIES * buffers.looked_up
    host = copies * buffers.inputs + buffers.hidden + buffers.looked_up
    if not plan.kv_on_gpu and not compute.uses_flash_attention(shape, plan):
        host += buffers.all
    if any(layer.state for layer, device in zip(shape.layers, placed, strict=False) if device == HOST):
        host += buffers.states
    ledger[HOST].compute += host


def _projector(ledger: _Ledger, plan: Plan, file: ModelFile) -> None:
    """An encoder of pictures or sounds is on one GPU as a whole."""
    target = ledger[only_gpu(plan) if plan.gpus else HOST]
    weights, buffers = projector_bytes(file, on_gpu=bool(plan.gpus))
    target.weights += weights
    target.compute += buffers


def _adapters(ledger: _Ledger, size: int) -> None:
    """An adapter's tensors are where those are that they adapt: in proportion to the weights."""
    total = sum(sums.weights for sums in ledger.devices)
    left = size
    for sums in ledger.devices[:-1]:
        part = size * sums.weights // total if total else 0
        sums.weights += part
        left -= part
    ledger[HOST].weights += left
