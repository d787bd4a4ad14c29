"""What a load would take: by part and device, and the ways in which it may be done. Values only; nobody is admitted."""

from enum import StrEnum

from gpud.core.facts import HOST
from gpud.core.record import Record

ANY_GPU = ""
"""In a :class:`Share`: one GPU, whichever admission chooses."""


class Source(StrEnum):
    """Where a size comes from, the best knowledge first."""

    MEASURED = "measured"
    DECLARED = "declared"
    PROBE = "probe"
    FORMULA = "formula"
    GUESS = "guess"


class Part(Record):
    """What one device holds of a model, as the engine counts it.

    ``device`` is the engine's own name of it (``CUDA0``, ``Host``); ``gpu`` is the position among the GPUs that the
    engine sees, None for the machine's own memory.
    """

    device: str
    gpu: int | None
    weights_bytes: int = 0
    kv_bytes: int = 0
    state_bytes: int = 0
    compute_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.state_bytes + self.compute_bytes


class Estimate(Record):
    """What the engine itself will allocate, GPUs first, in the engine's order; the machine's own memory is the last."""

    architecture: str
    parts: tuple[Part, ...]
    source: Source
    context: int = 0
    layers: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(part.total_bytes for part in self.parts)


class Share(Record):
    """So many bytes on one device: :data:`ANY_GPU`, the uuid of a GPU, or :data:`gpud.core.facts.HOST`."""

    device: str
    bytes: int


class Offer(Record):
    """One way to load a model: what the engine is told, and what that takes where.

    ``context`` and ``layers`` differ from the configuration where less was needed to make it fit; ``reduced`` says so
    in words (empty: as configured). ``split`` gives each GPU of ``shares`` its part of the layers, in their order,
    where there is more than one. ``shares`` names GPUs first. ``engine`` is one of the model's alternatives, empty its
    own. ``unproven``: the engine has not been heard about it yet; ``key`` names what its own count is kept under.
    ``resident``: the engine runs already and holds what it needs, so that nothing is reserved.
    """

    shares: tuple[Share, ...]
    source: Source = Source.GUESS
    context: int | None = None
    layers: int | None = None
    split: tuple[float, ...] = ()
    reduced: str = ""
    parts: tuple[Part, ...] = ()
    engine: str = ""
    unproven: bool = False
    key: str = ""
    resident: bool = False

    @property
    def kv_bytes(self) -> int | None:
        return sum(part.kv_bytes + part.state_bytes for part in self.parts) if self.parts else None

    @property
    def gpu_bytes(self) -> int:
        return sum(share.bytes for share in self.shares if share.device != HOST)

    @property
    def host_bytes(self) -> int:
        return sum(share.bytes for share in self.shares if share.device == HOST)

    @property
    def need_bytes(self) -> int:
        """What it is reserved for: its part on GPUs, or all of it where it has none there."""
        return self.gpu_bytes or self.host_bytes

    def placed(self, device: str) -> tuple[Share, ...]:
        """The shares, with :data:`ANY_GPU` replaced by a GPU."""
        return tuple(Share(device, share.bytes) if share.device == ANY_GPU else share for share in self.shares)


class Quote(Record):
    """All ways in which a model may be loaded, the best first.

    Admission takes the first that fits, and gives up none of a better one's context or layers while other models could
    make room for that. ``load_s`` is how long its last load took. ``less`` are offers that nobody allowed: they are
    named to whoever is refused, as what would fit (``reduced``: "a context of 4096").
    """

    offers: tuple[Offer, ...]
    load_s: float | None = None
    less: tuple[Offer, ...] = ()

    @classmethod
    def simple(cls, size_bytes: int, source: Source = Source.DECLARED, *, on_host: bool = False) -> "Quote":
        """One size, on one GPU or in the machine's memory."""
        return cls((Offer((Share(HOST if on_host else ANY_GPU, size_bytes),), source),))
