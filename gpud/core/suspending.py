"""The machine sleeps or goes down: what would not survive that goes first, in time, and comes back when it is awake."""

from gpud.core import events
from gpud.core.budget import describe
from gpud.core.counts import plural
from gpud.core.errors import GpuUnavailable, ShuttingDown, Suspending
from gpud.core.events import Kind, Level, Notice
from gpud.core.facts import HOST, JobResult, LoadsMeanwhile, Model, State, Suspension
from gpud.core.instance import Instance
from gpud.core.leaving import GPU_LOST, Leaving
from gpud.core.lifecycle import Trigger
from gpud.core.table import Table
from gpud.core.yielding import Yielding

KILL_TAKES_S = 0.5
"""Between the kill and the end of an engine: its memory, of which there may be much, is given back by the kernel."""

UNMEASURED_STOP_S = 1.0
"""How long an engine is taken to need to end of itself that has not been seen to."""

LEAST_SHARE_FOR_ANSWERS = 0.5
"""However long an engine has needed to end: answers have half of the time, and the kill comes at its end anyway."""

KEPT_LOOKS = 2
"""So many looks at the devices are held against what a kept engine held before; the first may have begun earlier."""

LOST_SHARE = 0.1
"""A kept engine that holds no more of what it held has lost it: a context of a driver's takes as much."""

WHY = {True: "shutdown", False: "suspend"}


class Sleeping:
    """Empties the machine within a bound, refuses what comes meanwhile, and has it back afterwards.

    ``problem`` says why no GPU can be used since the machine woke up, and ``hint`` what to do about it.
    """

    def __init__(self, table: Table, leaving: Leaving, yielding: Yielding) -> None:
        self._table = table
        self._leaving = leaving
        self._yielding = yielding
        self._out = table.out
        self._keeps: set[str] = set()
        self._held_before: dict[str, int] = {}
        self._looks_left = 0
        self._kill_at_s: float | None = None
        self._why = WHY[False]
        self.problem = ""
        self.hint = ""

    def asked(self, event: events.SuspendAsked) -> None:
        """A second one, without a waking between, only sets the bound anew."""
        now = self._table.now
        suspended = self._table.suspended = Suspension(event.shutdown, now, now + event.within_s)
        self._why = WHY[event.shutdown]
        spare_s = min(KILL_TAKES_S, event.within_s / 4)
        self._kill_at_s = now + event.within_s - spare_s
        self._keeps = set()
        self._held_before, self._looks_left = {}, 0
        lost: dict[str, None] = {}
        going = 0
        for instance in list(self._table.instances.values()):
            stays, why_not = self._survives(instance, event)
            if stays:
                self._keeps.add(instance.model.name)
                if not instance.on_host and instance.used_bytes:
                    self._held_before[instance.model.name] = instance.used_bytes
            elif instance.state.has_engine():
                going += 1
                if why_not:
                    lost[why_not] = None
            if not stays:
                self._remember(instance)
                self._refuse_waiting(instance, suspended)
                self._send_away(instance, self._kill_at_s - now)
        what = "shut down" if event.shutdown else "sleep"
        text = f"The machine is about to {what}: "
        text += f"{_models(going)} to be unloaded within {event.within_s:.1f} s" if going else "nothing has to go"
        if self._keeps:
            text += f", {len(self._keeps)} kept"
        if lost:
            text += f"; not kept, because {'; '.join(lost)}"
        self._out.add(Notice(Kind.SUSPENDING, text, fields={"within_seconds": event.within_s, "models": going}))
        self._out.touch()

    def woke_up(self, event: events.WokeUp) -> None:
        """Also when nobody had said that it would sleep, and once more when the GPUs can be used after all."""
        was, self._table.suspended = self._table.suspended, None
        self._kill_at_s = None
        had_problem, self.problem, self.hint = self.problem, event.problem, event.hint
        if not event.restore:
            self._table.after_sleep.clear()
        back = [self._table.instances[name] for name in self._table.after_sleep if name in self._table.instances]
        # Those that somebody holds come first, then as they were configured.
        back.sort(key=lambda instance: not (self._table.holds.count(instance.model.name) or instance.model.pinned))
        for instance in self._table.instances.values():
            if instance.state is not State.DRAINING or instance.draining_for not in WHY.values() or self._table.closing:
                continue
            if self._yielding.keeps_off(instance):
                self._leaving.go_on_draining(instance, "yield", None)
            else:
                self._leaving.stay_after_all(instance)
        restored = [instance.model.name for instance in back if self._bring_back(instance)]
        if event.problem:
            lost = self._end_those_on(event.vendor, come_back=event.restore)
            if not had_problem:
                text = f"{event.problem[:1].upper()}{event.problem[1:]}"
                if lost:
                    text += f"; {', '.join(lost)} had been kept and {'is' if len(lost) == 1 else 'are'} unloaded"
                self._out.add(Notice(Kind.GPU_PROBLEM, text, level=Level.ERROR, fields={"hint": event.hint}))
        elif had_problem or was is not None:
            text = "The GPUs can be used again" if had_problem else "The machine is awake"
            if restored:
                text += f"; {', '.join(restored)} {'is' if len(restored) == 1 else 'are'} loaded again"
            self._out.add(Notice(Kind.WOKE_UP, text, fields={"models": len(restored)}))
        if self._held_before:
            self._looks_left = KEPT_LOOKS
            self._table.sample()
        self._table.look = True
        self._out.touch()

    def looked(self) -> None:
        """The devices were looked at: a GPU may work again, and have lost what was kept there."""
        if not self._looks_left:
            return
        for name, before_bytes in list(self._held_before.items()):
            instance = self._table.instances.get(name)
            if instance is None or instance.state not in (State.READY, State.DRAINING):
                del self._held_before[name]
                continue
            used_bytes = instance.used_bytes
            if (
                used_bytes is None
                or used_bytes > before_bytes * LOST_SHARE
                or not self._table.books.is_listed(instance)
            ):
                continue
            del self._held_before[name]
            again = instance.state is State.READY
            self._out.tell(
                Kind.GPU_PROBLEM,
                f'"{name}" was kept over the sleep and has lost its memory: it holds {describe(used_bytes)} of '
                f"{describe(before_bytes)}; it is {'loaded anew' if again else 'ended'}",
                instance,
                level=Level.WARNING,
                hint='if this happens after each sleep, have models unloaded before it: suspend.policy "unload"',
            )
            self._end(instance)
            if again:
                self._table.after_sleep[name] = None
                self._bring_back(instance)
        self._looks_left -= 1
        if not self._looks_left:
            self._held_before = {}

    def check(self, model: Model) -> None:
        """Raises why it cannot be loaded now: the machine sleeps or goes down, or has not found its GPU again."""
        if self._table.suspended is not None:
            raise self._refusal(model.name, self._table.suspended)
        if self.problem and _needs_gpu(model) and not self._on_processor():
            raise GpuUnavailable(f'cannot load "{model.name}": {self.problem}', hint=self.hint)

    def _on_processor(self) -> bool:
        """Whether what needs a GPU does without one while none can be used."""
        return self._table.limits.loads_without_gpu is LoadsMeanwhile.CPU

    def place(self) -> None:
        """Of those who wait, say who does without a GPU because none can be used, or until one can."""
        for entry in self._table.waiting() if self.problem else ():
            if not isinstance(entry, Instance) or entry.ticket is None:
                continue
            if entry.state.has_engine() or not _needs_gpu(entry.model):
                continue
            if self._on_processor():
                entry.off_gpu = True
            else:
                entry.kept_off = True
                self._table.say_why(entry.ticket, f"waiting until GPUs can be used: {self.problem}")

    def deadlines(self) -> list[float]:
        return [] if self._kill_at_s is None or not self._engines() else [self._kill_at_s]

    def time_passed(self) -> None:
        """The time is nearly over: who has not gone is killed."""
        if self._kill_at_s is None or self._table.now < self._kill_at_s:
            return
        self._kill_at_s = None
        for instance in self._engines():
            if instance.state is State.READY:
                # It was taken over from an earlier gpud meanwhile.
                self._leaving.drain(instance, self._why, 0.0)
            if instance.state is State.DRAINING:
                self._leaving.drained(instance)
            if instance.state is not State.STOPPING:
                continue
            self._table.move(instance, Trigger.GRACE_OVER, self._why)
            self._out.tell(
                Kind.ENGINE_KILLED,
                f'The engine of "{instance.model.name}" has not ended and is killed: the machine cannot wait longer',
                instance,
                level=Level.WARNING,
            )
            self._out.add(events.Stop(instance.model.name, instance.generation, kill=True))

    def left(self) -> int:
        """How many engines have still to go before the machine may sleep."""
        return len(self._engines()) if self._table.suspended is not None else 0

    # The parts

    def _engines(self) -> list[Instance]:
        return [instance for instance in self._table.with_engine() if instance.model.name not in self._keeps]

    def _end_those_on(self, vendor: str, *, come_back: bool) -> list[str]:
        """End the engines that are still there although their GPU cannot be used: their answers are wrong or never
        come, and its driver cannot be mended while somebody has it open. Returns their names.
        """
        ended = []
        for instance in list(self._table.with_engine()):
            if instance.state not in (State.READY, State.DRAINING) or not self._is_on(instance, vendor):
                continue
            ended.append(instance.model.name)
            if come_back and instance.state is State.READY and not instance.stale:
                self._table.after_sleep[instance.model.name] = None
            self._end(instance)
        return ended

    def _is_on(self, instance: Instance, vendor: str) -> bool:
        """A device that is not seen any more may be of any vendor."""
        if instance.on_host:
            return False
        vendors = {
            sample.vendor for share in instance.main_shares if (sample := self._table.books.sample_of(share.device))
        }
        return not vendors or not vendor or vendor in vendors

    def _end(self, instance: Instance) -> None:
        """At once: what it answers meanwhile is worth nothing."""
        if instance.state is State.READY:
            self._leaving.drain(instance, GPU_LOST, 0.0)
        if instance.state is State.DRAINING:
            self._leaving.go_on_draining(instance, GPU_LOST, 0.0)
            self._leaving.drained(instance)

    def _survives(self, instance: Instance, event: events.SuspendAsked) -> tuple[bool, str]:
        """Whether it may stay, and why not, if that was wished."""
        if not event.keep or event.shutdown or instance.state is not State.READY:
            return False, ""
        held = {share.device for share in instance.shares}
        for sample in self._table.books.samples:
            if sample.uuid in held and sample.vendor in event.lost:
                return False, event.lost[sample.vendor]
        return True, ""

    def _remember(self, instance: Instance) -> None:
        """What is there, or on its way, was to be there; what somebody has sent away was not."""
        there = instance.state in (State.LOADING, State.READY) and not instance.stale
        if there or instance.wanted:
            self._table.after_sleep[instance.model.name] = None

    def _refuse_waiting(self, instance: Instance, suspended: Suspension) -> None:
        instance.wanted = False
        if instance.waiting or instance.load_jobs:
            error = self._refusal(instance.model.name, suspended)
            instance.leave_queue()
            self._out.end_load_jobs(instance, JobResult.FAILED, error.text, error)

    def _send_away(self, instance: Instance, within_s: float) -> None:
        stop_s = UNMEASURED_STOP_S if instance.stop_s is None else instance.stop_s
        answers_s = max(within_s * LEAST_SHARE_FOR_ANSWERS, within_s - stop_s)
        if instance.state is State.LOADING:
            self._leaving.cancel_launch(instance, self._why, "the machine cannot wait for it")
        elif instance.state is State.READY:
            self._leaving.drain(instance, self._why, answers_s)
        elif instance.state is State.DRAINING:
            self._leaving.go_on_draining(instance, self._why, answers_s)

    def _bring_back(self, instance: Instance) -> bool:
        name = instance.model.name
        if self._table.closing or (self.problem and _needs_gpu(instance.model)):
            return False
        del self._table.after_sleep[name]
        if instance.state in (State.LOADING, State.READY, State.FAILED) or instance.removed:
            return False
        if self._yielding.keeps_off(instance):
            self._table.with_gpus[name] = None
            return False
        instance.wanted = True
        self._table.enqueue(instance)
        return True

    def _refusal(self, name: str, suspended: Suspension) -> Suspending | ShuttingDown:
        left_s = suspended.until_s - self._table.now
        if suspended.shutdown:
            return ShuttingDown(
                f'cannot load "{name}": the machine is shutting down', hint="load it after the next start"
            )
        if left_s > 0:
            when = f"is about to sleep, within {left_s:.1f} s"
        else:
            when = "sleeps, or has just woken up and looks whether its GPUs work"
        return Suspending(f'cannot load "{name}": the machine {when}', hint="ask again once the machine is awake")


def _needs_gpu(model: Model) -> bool:
    """Also where no GPU is seen: its driver may be what does not answer."""
    return model.gpu != HOST and model.settings.layers != "0"


def _models(count: int) -> str:
    return plural(count, "model has", "models have")
