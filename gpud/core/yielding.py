"""The GPUs are given away: whatever is on them goes, and nothing is loaded there until they are taken back."""

from gpud.core import events
from gpud.core.errors import Yielded
from gpud.core.events import Kind, Notice
from gpud.core.facts import HOST, JobResult, LoadsMeanwhile, Model, State, YieldStatus
from gpud.core.instance import Instance
from gpud.core.leaving import Leaving
from gpud.core.spans import span
from gpud.core.table import Table

GIVES_AWAY = frozenset({"load", "game"})
"""What of the things that can be inhibited leaves the GPUs to others."""


class Yielding:
    """Gives the GPUs away for a time, for as long as somebody inhibits loading or plays a game, or until somebody
    resumes.

    What was pinned or held, or waited for by nobody but gpud itself, comes back afterwards. During a game loads wait,
    or do without a GPU, or are refused, as configured; else they are refused.
    """

    def __init__(self, table: Table, leaving: Leaving) -> None:
        self._table = table
        self._leaving = leaving
        self._out = table.out

    def asked(self, event: events.YieldAsked) -> None:
        now = self._table.now
        until_s = None if event.for_s is None else now + event.for_s
        self._table.yielded = YieldStatus(event.caller, event.why, now, until_s)
        how_long = "until somebody resumes" if event.for_s is None else f"for {span(event.for_s)}"
        self._tell(
            Kind.YIELDED, f"The GPUs are given away {how_long} by {_label(event)}: {event.why or 'no reason given'}"
        )
        self._empty()

    def resumed(self, event: events.ResumeAsked) -> None:
        if self._table.yielded is not None:
            self._table.yielded = None
            self._over(f"by {event.caller.label or event.caller.owner}")

    def time_passed(self) -> None:
        yielded = self._table.yielded
        if yielded is not None and yielded.until_s is not None and yielded.until_s <= self._table.now:
            self._table.yielded = None
            self._over(f"because the {span(yielded.until_s - yielded.since_s)} are over")

    def inhibited(self) -> None:
        """Somebody forbids loading for as long as a descriptor is open."""
        self._tell(Kind.YIELDED, f"The GPUs are given away: {self.reason()}")
        self._empty()

    def inhibition_over(self) -> None:
        self._over("because nobody forbids loading any more")

    def _over(self, why: str) -> None:
        """One who wanted them given away does so no longer; there may be another."""
        reason = self.reason()
        if reason:
            self._tell(Kind.YIELDED, f"The GPUs stay given away: {reason}")
        else:
            self._tell(Kind.RESUMED, f"The GPUs are taken back {why}")
            self._take_back()

    def reason(self) -> str:
        """Why nothing is loaded on the GPUs, or nothing."""
        return self._strict_reason() or self._game()

    def place(self) -> None:
        """Of those who wait, say who waits until the GPUs are taken back, and who does without them this time."""
        reason, strict = self.reason(), self._strict_reason()
        on_processor = bool(reason) and not strict and self._meanwhile() is LoadsMeanwhile.CPU
        for entry in self._table.waiting():
            if not isinstance(entry, Instance) or entry.state.has_engine() or entry.ticket is None:
                continue
            concerned = bool(reason) and self.concerns(entry.model)
            entry.off_gpu = concerned and on_processor
            entry.kept_off = concerned and not on_processor
            if entry.kept_off:
                self._table.say_why(entry.ticket, f"waiting until the GPUs are taken back: {reason}")

    def _meanwhile(self) -> LoadsMeanwhile:
        return self._table.limits.loads_during_game

    def _game(self) -> str:
        for hold in self._table.holds.all():
            if "game" in hold.what:
                who = hold.application or hold.caller.label or hold.caller.owner
                return f"{who} has them ({hold.reason or 'no reason given'})"
        return ""

    def _strict_reason(self) -> str:
        """The same, where somebody wants it and not just a game."""
        yielded = self._table.yielded
        if yielded is not None:
            who = yielded.caller.label or yielded.caller.owner
            left = "" if yielded.until_s is None else f", {span(yielded.until_s - self._table.now)} left"
            return f"{who} has asked for them ({yielded.why or 'no reason given'}{left})"
        for hold in self._table.holds.all():
            if "load" in hold.what:
                who = hold.application or hold.caller.label or hold.caller.owner
                return f"{who} forbids loading ({hold.reason or 'no reason given'})"
        return ""

    def check(self, model: Model) -> None:
        """Raises Yielded for a model that would go where nothing is loaded now."""
        reason, strict = self.reason(), self._strict_reason()
        if not reason or not self.concerns(model):
            return
        if strict:
            raise Yielded(
                f'cannot load "{model.name}": the GPUs are given away, {reason}',
                hint="wait, or take them back with gpudctl resume",
            )
        if self._meanwhile() is LoadsMeanwhile.REFUSE:
            raise Yielded(
                f'cannot load "{model.name}": the GPUs are given away, {reason}',
                hint="wait until it has ended, or set give_way.loads to wait or cpu",
            )

    def keeps_off(self, instance: Instance) -> bool:
        """Whether nothing may be now where this model is, or would go."""
        return bool(self.reason()) and self._is_there(instance)

    def concerns(self, model: Model) -> bool:
        """Without a GPU it is the machine's memory that is given away."""
        if self._without_gpu():
            return True
        return model.gpu != HOST and model.settings.layers != "0"

    def _without_gpu(self) -> bool:
        return all(sample.is_host for sample in self._table.books.samples)

    def _is_there(self, instance: Instance) -> bool:
        """Whether it is on what is given away, or would go there."""
        if instance.shares:
            return self._without_gpu() or not instance.on_host
        return self.concerns(instance.model)

    def _empty(self) -> None:
        refused = bool(self._strict_reason()) or self._meanwhile() is LoadsMeanwhile.REFUSE
        for instance in list(self._table.instances.values()):
            model = instance.model
            if not self._is_there(instance):
                continue
            dear = model.pinned or self._table.holds.count(model.name)
            if instance.wanted or (dear and instance.state in (State.LOADING, State.READY)):
                self._table.with_gpus[model.name] = None
            instance.wanted = False
            if refused and (instance.waiting or instance.load_jobs):
                error = Yielded(
                    f'cannot load "{model.name}": the GPUs are given away, {self.reason()}', hint="see gpudctl resume"
                )
                instance.leave_queue()
                self._out.end_load_jobs(instance, JobResult.FAILED, error.text, error)
            if instance.state is State.LOADING:
                self._leaving.cancel_launch(instance, "user", "the GPUs are given away")
                if instance.load_jobs:
                    self._table.enqueue(instance)
            elif instance.state is State.READY:
                self._leaving.drain(instance, "yield", None)
            elif instance.state is State.DRAINING and instance.draining_for not in ("shutdown", "suspend"):
                # It does not stay for being busy, nor for who wanted it to go: it answers and goes.
                self._leaving.go_on_draining(instance, "yield", None)
        self._table.look = True
        self._out.touch()

    def _take_back(self) -> None:
        """Whoever still answers stays; whoever has gone, or is on its way, is loaded again if it was to be there."""
        names, self._table.with_gpus = self._table.with_gpus, {}
        for instance in self._table.instances.values():
            if instance.state is State.DRAINING and instance.draining_for == "yield":
                self._leaving.stay_after_all(instance)
            there = instance.removed or instance.state in (State.LOADING, State.READY, State.FAILED)
            if instance.model.name in names and not there:
                instance.wanted = True
                self._table.enqueue(instance)
        self._table.look = True
        self._out.touch()

    def _tell(self, kind: Kind, message: str) -> None:
        self._out.add(Notice(kind, message))


def _label(event: events.YieldAsked) -> str:
    return event.caller.label or event.caller.owner
