"""What is asked of admission, and what it answers. Values only."""

from collections.abc import Mapping, Sequence

from gpud.core.budget import Account
from gpud.core.errors import GpudError
from gpud.core.eviction import Candidate
from gpud.core.facts import HOST, GpuSample, Model
from gpud.core.quote import Offer, Quote, Share
from gpud.core.record import Record, field


class Device(Record):
    """One device as admission sees it.

    ``coming_bytes`` are promised back: engines that are stopping, and memory of engines just gone that no sample shows
    yet. ``movable`` are the models that may be unloaded to make room, ``occupied`` those that may as soon as they have
    answered, ``starting`` those that may once they have come up. ``claimed_bytes`` belong to programs that are no
    engines. ``taken_by`` says that other programs hold so much of it that nothing is to be loaded there.
    """

    sample: GpuSample
    account: Account
    coming_bytes: int = 0
    movable: Sequence[Candidate] = ()
    occupied: Sequence[Candidate] = ()
    starting: Sequence[Candidate] = ()
    claimed_bytes: int = 0
    taken_by: str = ""

    @property
    def uuid(self) -> str:
        return self.sample.uuid

    @property
    def name(self) -> str:
        return self.sample.name

    @property
    def capacity_bytes(self) -> int:
        return self.account.capacity_bytes or 0

    @property
    def could_go_bytes(self) -> int:
        """What all models hold together that may be unloaded, sooner or later."""
        return sum(candidate.bytes for tier in (self.movable, self.occupied, self.starting) for candidate in tier)


class Wish(Record):
    """Who wants memory: ``subject`` completes "cannot …". ``gpu`` is one by index or uuid, or the machine's memory.

    ``overdue``: it has waited for as long as others may be served before it, so that models which are in use are in the
    way no longer: they take no new requests until it has been served. ``awaits_claims``: it waits for what programs
    have claimed, which may be long; whoever does not is refused. ``before`` is what it was told to wait for the last
    time. ``less`` says what can be done about one that is larger than the whole budget.
    """

    subject: str
    quote: Quote
    gpu: str = ""
    may_evict: bool = True
    overdue: bool = False
    awaits_claims: bool = False
    before: "Waits | None" = None
    less: str = "ask for less, or raise gpu.budget"

    @classmethod
    def load(
        cls,
        model: Model,
        quote: Quote,
        *,
        may_evict: bool = True,
        overdue: bool = False,
        before: "Waits | None" = None,
    ) -> "Wish":
        gpu = HOST if model.settings.layers == "0" else model.gpu
        less = "take a smaller quantization, lower its context or layers, or raise gpu.budget"
        return cls(f'load "{model.name}"', quote, gpu, may_evict, overdue, before=before, less=less)


class Granted(Record):
    offer: Offer
    shares: tuple[Share, ...]
    vendor: str


class Waits(Record):
    """``shares`` are kept free for it from now on. ``cause``: ``coming`` memory is on its way, ``eviction`` idle models
    are asked to go, ``behind`` others are before it, ``busy`` models in the way have to answer first, ``loading`` some
    have to come up before they can go, ``claimed`` programs have to give back what they claimed.

    It waits for the models in ``awaits``, and so for ``freed`` bytes by device, beyond what is on its way back anyway.
    """

    shares: tuple[Share, ...]
    text: str
    cause: str
    awaits: frozenset[str] = frozenset()
    freed: Mapping[str, int] = field(default_factory=dict)


class Evicts(Record):
    """It fits once these models are unloaded; ``spared`` are those that could have gone and stay."""

    shares: tuple[Share, ...]
    victims: tuple[Candidate, ...]
    spared: tuple[Candidate, ...]
    text: str


class Refused(Record):
    error: GpudError


Verdict = Granted | Waits | Evicts | Refused
