"""Everything visible, as one value. Decides nothing, and changes nothing."""

from collections.abc import Mapping, Sequence

from gpud.core.facts import GpuStatus, JobStatus, Snapshot, State
from gpud.core.record import replace
from gpud.core.scheduler import Scheduler
from gpud.core.statuses import Statuses
from gpud.engine.starts import Running


def picture(
    scheduler: Scheduler,
    engines: Mapping[str, Running],
    jobs: tuple[JobStatus, ...],
    *,
    store_problem: str,
    idle_timeout_s: float,
    version: str,
) -> Snapshot:
    """Put together once for each change; ``now_s`` is whoever asks's to say."""
    seen = scheduler.model_statuses()
    lively = dict(seen.lively)
    for name, status in seen.lively.items():
        running = engines.get(name)
        if running is not None:
            # Those of the last look; right after a start or a take-over there has been none.
            pids = tuple(sorted(scheduler.pids_of(name) or running.runner.pids()))
            lively[name] = replace(status, endpoint=running.runner.endpoint, pids=pids)
    gpus = scheduler.gpu_statuses()
    degraded, text, hint = _degraded(scheduler, gpus, store_problem)
    return Snapshot(
        now_s=0.0,
        state=_state(scheduler, {status.state for status in lively.values()}, degraded),
        degraded=degraded,
        degraded_text=text,
        degraded_hint=hint,
        models=Statuses(seen.stock, lively, seen.patience),
        gpus=gpus,
        jobs=jobs,
        holds=scheduler.hold_statuses(),
        idle_timeout_s=idle_timeout_s,
        version=version,
        claims=scheduler.claim_statuses(),
        queue=scheduler.queue_statuses(),
        yielded=scheduler.yield_status(),
        sessions=scheduler.session_statuses(),
    )


def _state(scheduler: Scheduler, states: set[State], degraded: str) -> str:
    """What gpud does as a whole, in a word."""
    if scheduler.suspended() is not None:
        return "suspending"
    if State.LOADING in states:
        return "loading"
    if states & {State.DRAINING, State.STOPPING, State.KILLING}:
        return "unloading"
    if State.READY in states:
        return "active"
    if scheduler.given_away():
        return "yielded"
    return "unavailable" if degraded == "gpu-unavailable" else "idle"


def _degraded(scheduler: Scheduler, gpus: Sequence[GpuStatus], store_problem: str) -> tuple[str, str, str]:
    """What gpud lacks: in a word, in a sentence, and what to do about it."""
    if problem := scheduler.gpu_problem():
        return "gpu-unavailable", problem, scheduler.gpu_problem_hint()
    for gpu in gpus:
        if gpu.sample.health:
            return "gpu-unavailable", f"{gpu.sample.name}: {gpu.sample.health}", ""
    if store_problem:
        return "state-not-kept", store_problem, ""
    return "", "", ""
