"""Which of a model's engines is to serve it: those that run already and have room first, then in the wanted order.

Values only: who asked the engines is not its business.
"""

from collections.abc import Sequence

from gpud.core.ports import Standing
from gpud.core.quote import Offer, Quote, Share
from gpud.core.record import Record, replace


class Way(Record):
    """What a model needs with one of its engines, and how that engine stands with it where somebody else runs it."""

    quote: Quote
    standing: Standing | None = None

    @property
    def rank(self) -> tuple[bool, int]:
        """What can answer at once comes before what has to be loaded or has others waiting; of these the less busy."""
        if self.standing is None or self.standing.full:
            return True, 0
        return False, self.standing.working

    @property
    def offers(self) -> tuple[Offer, ...]:
        """An engine that holds its memory already needs no more of it."""
        if self.standing is None or not self.standing.resident:
            return self.quote.offers
        return tuple(
            replace(offer, shares=tuple(Share(share.device, 0) for share in offer.shares), resident=True)
            for offer in self.quote.offers
        )


def chosen(ways: Sequence[Way]) -> Quote:
    """All ways in which the model may be had, the best first; what gives up context or layers comes last."""
    ordered = sorted(ways, key=lambda way: way.rank)
    offers = [offer for way in ordered for offer in way.offers]
    offers.sort(key=lambda offer: bool(offer.reduced))
    return Quote(tuple(offers), ordered[0].quote.load_s, tuple(offer for way in ways for offer in way.quote.less))
