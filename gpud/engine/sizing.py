"""What a model would need, and in which ways it can be loaded: what is declared, measured, counted or calculated.

Puts together what the engine's backend, the files and the store know. Admits nobody, and measures nothing itself.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence

from gpud.core.budget import describe
from gpud.core.counts import plural
from gpud.core.errors import BackendFailed, GpudError
from gpud.core.estimate import Shape, ShapeInvalid, UnknownArchitecture, estimate, first_guess
from gpud.core.facts import HOST, GpuSample, Model
from gpud.core.learning import Measured, beyond
from gpud.core.modelfile import ModelFile
from gpud.core.plan import Plan
from gpud.core.ports import Backend, Files, Store, TellsNeed
from gpud.core.quote import ANY_GPU, Estimate, Offer, Quote, Share, Source
from gpud.core.record import Record, Struct, field, replace

log = logging.getLogger(__name__)

LAYERS_AT_A_TIME = 5
"""Fewer layers are offered in such steps: one layer more or less does not decide whether a model is of use."""

NAMED_CONTEXT = 1024
"""The smallest context that is named to somebody whose model does not fit."""

SHAPES_KEPT = 10
"""Each has what its file says with it, 0.1 MB for one of a few hundred tensors: enough for those that come and go."""


class Machine(Record):
    """The GPUs that a quote is made for, as the last look saw them, the roomiest first. Those that are not well count
    only where there is no other: a model that belongs on a GPU is not sized for the machine's memory because of that.
    """

    gpus: tuple[GpuSample, ...]

    @classmethod
    def of(cls, samples: Sequence[GpuSample]) -> "Machine":
        gpus = [sample for sample in samples if not sample.is_host]
        well = [sample for sample in gpus if not sample.health]
        return cls(tuple(sorted(well or gpus, key=lambda sample: -(sample.total_bytes or 0))))

    def for_model(self, model: Model) -> tuple[GpuSample, ...]:
        """Where the model may go; none: the machine's own memory. One that is named and not there is missed later."""
        if model.gpu == HOST or model.settings.layers == "0":
            return ()
        if model.gpu:
            named = tuple(g for g in self.gpus if model.gpu in (g.uuid, str(g.index)))
            return named or (GpuSample(model.gpu, model.gpu, 0, "unknown"),)
        return self.gpus


class Ground(Struct):
    """All that is known of one model with one engine before anything is calculated.

    ``told`` is what the engine will be told to take, where its backend decides that by itself.
    """

    model: Model
    backend: Backend
    build: str
    fingerprint: str
    plan: Plan | None = None
    file: ModelFile | Shape | None = None
    draft: ModelFile | None = None
    mmproj: ModelFile | None = None
    adapter_bytes: int = 0
    unknown: str = ""
    file_bytes: int | None = None
    told: Estimate | None = None
    gpus: tuple[GpuSample, ...] = ()
    measured: Measured | None = None
    estimates: dict[Plan, Estimate] = field(default_factory=dict)


def place_of(sample: GpuSample | None, build: str) -> str:
    """Where a residual belongs to: the kind of device, its driver, the engine's build."""
    if sample is None or sample.is_host:
        return f"{HOST}|{build}"
    return f"{sample.name}|{sample.driver}|{build}"


def measured_key(fingerprint: str, gpus: Sequence[GpuSample]) -> str:
    """What was measured on one kind of device says nothing of another."""
    return f"{fingerprint}|{gpus[0].name if gpus else HOST}"


def probe_key(build: str, fingerprint: str, plan: Plan, gpus: Sequence[GpuSample]) -> str:
    """Everything that an engine's own count depends on."""
    text = "|".join((build, fingerprint, repr(plan), *(gpu.name for gpu in gpus)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Sizer:
    """Owns what was read of files lately. :meth:`ground` and :meth:`quote` block: they are for threads."""

    def __init__(self, files: Files, store: Store) -> None:
        self._files = files
        self._store = store
        self._shapes: dict[str, tuple[ModelFile, Shape]] = {}

    # What is known

    def ground(self, backend: Backend, model: Model, machine: Machine) -> Ground:
        """Raises what stands in the way of loading it at all: BackendFailed of the preflight."""
        backend.check(model)
        gpus = machine.for_model(model)
        ground = Ground(model, backend, backend.build(), backend.fingerprint(model), gpus=gpus)
        ground.file_bytes = backend.file_bytes(model)
        ground.measured = self._store.learned(measured_key(ground.fingerprint, gpus))
        ground.plan = backend.plan(model, min(1, len(gpus)))
        if ground.plan is not None and ground.plan.file:
            self._read(ground, ground.plan)
        if isinstance(backend, TellsNeed):
            ground.told = backend.need(model, on_gpu=bool(gpus))
        return ground

    def _read(self, ground: Ground, plan: Plan) -> None:
        """What the files say. What cannot be read here is found by the engine itself, which says it better."""
        try:
            file = self._files.read(plan.file)
            ground.draft = self._files.read(plan.draft.file) if plan.draft is not None and plan.draft.file else None
            ground.mmproj = self._files.read(plan.mmproj) if plan.mmproj else None
            ground.adapter_bytes = sum(self._files.read(path).size_bytes for path in plan.adapters)
        except BackendFailed as problem:
            ground.unknown = problem.message
            return
        try:
            ground.file = self._shape(plan.file, file)
        except (UnknownArchitecture, ShapeInvalid) as problem:
            ground.unknown = problem.message
            ground.file = file

    def _shape(self, path: str, file: ModelFile) -> Shape:
        known = self._shapes.get(path)
        if known is not None and known[0] is file:
            return known[1]
        shape = Shape.of(file)
        self._shapes[path] = (file, shape)
        if len(self._shapes) > SHAPES_KEPT:
            del self._shapes[next(iter(self._shapes))]
        return shape

    # What it would take

    def quote(self, ground: Ground) -> Quote:
        """All ways to load it, the best first."""
        model = ground.model
        load_s = None if ground.measured is None or ground.measured.load_s <= 0 else ground.measured.load_s
        first = self._as_configured(ground)
        if first.source is Source.DECLARED or not isinstance(ground.file, Shape) or ground.plan is None:
            return Quote((first,), load_s)
        offers = [first, *self._split(ground)]
        offers += [offer for offer in self._smaller(ground, model.least_context) if offer not in offers]
        if ground.gpus and model.settings.layers in (None, "auto"):
            offers += self._partly(ground)
            less = list(self._less_context(ground))
        else:
            less = [*self._less_context(ground), *(self._partly(ground) if ground.gpus else ())]
        named = {offer.reduced for offer in offers}
        return Quote(tuple(offers), load_s, tuple(offer for offer in less if offer.reduced not in named))

    def _as_configured(self, ground: Ground) -> Offer:
        model, plan = ground.model, ground.plan
        on_gpu = bool(ground.gpus)
        where = ANY_GPU if on_gpu else HOST
        if model.size_bytes is not None:
            return Offer((Share(where, model.size_bytes),), Source.DECLARED, engine=model.engine)
        counted = ground.told if plan is None else self._counted(ground, plan, ground.gpus[:1])
        if ground.measured is not None and (ground.measured.gpu_bytes or not on_gpu):
            return self._measured(ground, ground.measured, counted)
        if counted is not None and plan is None:
            shares = self._shares(ground, counted, ground.gpus[:1])
            return Offer(shares, counted.source, parts=counted.parts, engine=model.engine)
        if counted is None or plan is None:
            size = first_guess(ground.file_bytes, model.settings.context)
            key = "" if plan is None else self._key(ground, plan, ground.gpus[:1])
            return Offer((Share(where, size),), Source.GUESS, engine=model.engine, unproven=bool(key), key=key)
        return self._offer(ground, plan, counted, ground.gpus[:1])

    def _measured(self, ground: Ground, measured: Measured, counted: Estimate | None) -> Offer:
        """As it was before with the same settings; what was not measured is as it was counted."""
        on_gpu = bool(ground.gpus)
        host = self._shares(ground, counted, ground.gpus[:1])[-1].bytes if counted is not None else measured.host_bytes
        shares = (
            (Share(ANY_GPU, measured.gpu_bytes), Share(HOST, host)) if on_gpu else (Share(HOST, measured.host_bytes),)
        )
        parts = counted.parts if counted is not None else ()
        return Offer(shares, Source.MEASURED, parts=parts, engine=ground.model.engine)

    def _split(self, ground: Ground) -> Iterator[Offer]:
        """Over two GPUs and more, each with its part of the layers by what it has in all."""
        model, plan = ground.model, ground.plan
        for count in range(2, len(ground.gpus) + 1) if plan is not None and not model.gpu else ():
            gpus = ground.gpus[:count]
            total = sum(gpu.total_bytes or 0 for gpu in gpus)
            if not total:
                return
            split = tuple(round((gpu.total_bytes or 0) / total, 3) for gpu in gpus)
            assert plan is not None
            split_plan = replace(plan, gpus=count, tensor_split=split)
            counted = self._counted(ground, split_plan, gpus)
            if counted is not None:
                yield self._offer(ground, split_plan, counted, gpus, split=split)

    def _smaller(self, ground: Ground, least_context: int | None) -> Iterator[Offer]:
        """With half the context, and half of that, down to the least that is allowed."""
        plan = ground.plan
        counted = None if plan is None else self._counted(ground, plan, ground.gpus[:1])
        if plan is None or counted is None or least_context is None:
            return
        context = counted.context
        while context > least_context:
            context = max(least_context, context // 2)
            smaller = replace(plan, context=context)
            counted = self._counted(ground, smaller, ground.gpus[:1])
            if counted is None:
                return
            text = f"a context of {context}"
            yield self._offer(ground, smaller, counted, ground.gpus[:1], context=context, reduced=text)

    def _less_context(self, ground: Ground) -> Iterator[Offer]:
        return self._smaller(ground, NAMED_CONTEXT)

    def _partly(self, ground: Ground) -> Iterator[Offer]:
        """With fewer layers on the GPU, and at last none."""
        plan, shape = ground.plan, ground.file
        if plan is None or not isinstance(shape, Shape):
            return
        context = ground.model.least_context
        everything = shape.count + 1
        layers = min(plan.layers, everything)
        while layers > 0:
            layers = max(0, layers - LAYERS_AT_A_TIME)
            smaller = replace(plan, layers=layers, gpus=1 if layers else 0)
            if context is not None and (plan.context == 0 or context < plan.context):
                smaller = replace(smaller, context=context)
            counted = self._counted(ground, smaller, ground.gpus[:1] if layers else ())
            if counted is None:
                return
            text = f"{layers} of {plural(everything, 'layer')} on the GPU" if layers else "no layers on the GPU"
            told = smaller.context if smaller.context != plan.context else None
            if told is not None:
                text += f" and a context of {told}"
            gpus = ground.gpus[:1] if layers else ()
            yield self._offer(ground, smaller, counted, gpus, layers=layers, context=told, reduced=text)

    def _offer(
        self,
        ground: Ground,
        plan: Plan,
        counted: Estimate,
        gpus: Sequence[GpuSample],
        *,
        split: tuple[float, ...] = (),
        context: int | None = None,
        layers: int | None = None,
        reduced: str = "",
    ) -> Offer:
        return Offer(
            self._shares(ground, counted, gpus),
            counted.source,
            context,
            layers,
            split,
            reduced,
            counted.parts,
            ground.model.engine,
            unproven=counted.source is not Source.PROBE,
            key=self._key(ground, plan, gpus),
        )

    @staticmethod
    def _key(ground: Ground, plan: Plan, gpus: Sequence[GpuSample]) -> str:
        return probe_key(ground.build, ground.fingerprint, plan, gpus)

    def _counted(self, ground: Ground, plan: Plan, gpus: Sequence[GpuSample]) -> Estimate | None:
        """By the engine itself, if it was heard about exactly this; else by the formula."""
        known = ground.estimates.get(plan)
        if known is not None:
            return known
        found = self._store.probed(self._key(ground, plan, gpus))
        if found is None and isinstance(ground.file, Shape):
            try:
                found = estimate(
                    ground.file,
                    plan,
                    draft=ground.draft,
                    mmproj=ground.mmproj,
                    adapter_bytes=ground.adapter_bytes,
                )
            except GpudError as problem:
                ground.unknown = problem.message
        if found is not None:
            ground.estimates[plan] = found
        return found

    def _shares(self, ground: Ground, counted: Estimate | None, gpus: Sequence[GpuSample]) -> tuple[Share, ...]:
        return () if counted is None else self.shares_of(counted, gpus, ground.build, named=len(gpus) > 1)

    def shares_of(
        self, counted: Estimate, gpus: Sequence[GpuSample], build: str, *, named: bool = True
    ) -> tuple[Share, ...]:
        """What to reserve for an engine that counts so much: its rest and a margin are added on each device.

        ``named``: on just these GPUs; else there is one, whichever that will be.
        """
        shares = []
        for number, gpu in enumerate(gpus):
            size = sum(part.total_bytes for part in counted.parts if part.gpu == number)
            rest, margin = beyond(size, self._store.residual(place_of(gpu, build)), on_host=False)
            shares.append(Share(gpu.uuid if named else ANY_GPU, size + rest + margin))
        size = sum(part.total_bytes for part in counted.parts if part.gpu is None)
        rest, margin = beyond(size, self._store.residual(place_of(None, build)), on_host=True)
        shares.append(Share(HOST, size + rest + (0 if gpus else margin)))
        return tuple(shares)

    # What is learned

    def heard(self, key: str, counted: Estimate) -> None:
        """The engine has said itself what it takes."""
        self._store.keep_probe(key, counted)

    def wants_probe(self, ground: Ground) -> bool:
        """Whether only the engine itself can tell, and a dry run of it takes nothing from anybody: of a model with a
        recurrent state llama.cpp allocates that even then, which a full GPU does not have.
        """
        plan, file = ground.plan, ground.file
        if plan is None or not ground.unknown or ground.model.size_bytes is not None or ground.measured is not None:
            return False
        recurrent = isinstance(file, ModelFile) and any(".ssm." in key or ".wkv." in key for key in file.values)
        return (
            file is not None
            and not (recurrent and ground.gpus)
            and self._counted(ground, plan, ground.gpus[:1]) is None
        )

    def probed(self, ground: Ground, counted: Estimate) -> None:
        """The engine was asked, in a dry run, about the model as it is configured."""
        if ground.plan is not None:
            self.heard(self._key(ground, ground.plan, ground.gpus[:1]), counted)

    def settled(
        self,
        fingerprint: str,
        build: str,
        shares: Sequence[Share],
        load_s: float,
        gpus: Sequence[GpuSample],
        counted: Estimate | None,
    ) -> None:
        """A load is over, and this is what it took: for the same settings again, and for others on the same device."""
        gpu_bytes = sum(share.bytes for share in shares if share.device != HOST)
        host_bytes = sum(share.bytes for share in shares if share.device == HOST)
        self._store.learn(measured_key(fingerprint, gpus), Measured(gpu_bytes, host_bytes, load_s))
        if counted is None or len(gpus) != 1:
            return
        own = sum(part.total_bytes for part in counted.parts if part.gpu is not None)
        if own and gpu_bytes:
            self._store.learn_residual(place_of(gpus[0], build), gpu_bytes - own)
            log.debug("%s beyond its own count of %s", describe(gpu_bytes - own), describe(own))
