"""Promises that models stay: who gave them to whom. Says whether something is held; never whether it goes."""

from gpud.core.facts import Caller, HoldStatus, session_owner


class Holds:
    """All holds and inhibitors by their cookie."""

    def __init__(self) -> None:
        self._holds: dict[int, HoldStatus] = {}

    def add(self, hold: HoldStatus) -> None:
        self._holds[hold.cookie] = hold

    def drop(self, cookie: int) -> HoldStatus | None:
        return self._holds.pop(cookie, None)

    def all(self) -> tuple[HoldStatus, ...]:
        return tuple(self._holds.values())

    def held(self, model: str, what: str) -> bool:
        """Whether a hold on the model, or an inhibitor of all models, forbids ``what``."""
        return bool(self._holds) and any(
            hold.model in ("", model) and what in hold.what for hold in self._holds.values()
        )

    def of(self, model: str) -> list[Caller]:
        """Who holds it."""
        return [hold.caller for hold in self._holds.values() if hold.model == model]

    def count(self, model: str) -> int:
        return len(self.of(model))

    def holders(self, model: str, *, other_than: Caller) -> tuple[str, ...]:
        """How those appear in messages who hold the model, without ``other_than`` and the session that it works in."""
        own = {other_than.owner, session_owner(other_than.session)}
        others = (h for h in self._holds.values() if h.model == model and h.caller.owner not in own)
        return tuple(sorted(h.application or h.caller.label or h.caller.owner for h in others))
