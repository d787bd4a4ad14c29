"""Downloads of models as jobs that everybody sees, and who may end them. Downloads nothing: the bytes flow in a process
of whoever asked for them.
"""

from collections.abc import Callable

from gpud.core.errors import NoSuchJob
from gpud.core.events import JobEnded, Outcome
from gpud.core.facts import Caller, JobKind, JobResult, JobStatus
from gpud.core.record import replace

STAGE = "downloading"


class Downloads:
    """Belongs to the engine's loop. ``changed`` is called with what is to be told, or with nothing where only the
    figures have moved.
    """

    def __init__(self, changed: Callable[[tuple[Outcome, ...]], None], now: Callable[[], float]) -> None:
        self._changed = changed
        self._now = now
        self._jobs: dict[int, JobStatus] = {}

    def statuses(self) -> tuple[JobStatus, ...]:
        return tuple(self._jobs.values())

    def has(self, job: int) -> bool:
        return job in self._jobs

    def begin(self, job: int, caller: Caller, what: str, total_bytes: int | None) -> None:
        """``what`` is its name for people. ``total_bytes`` None: nobody knows yet."""
        self._jobs[job] = _moved(JobStatus(job, JobKind.DOWNLOAD, what, caller, self._now(), STAGE), 0, total_bytes)
        self._changed(())

    def progress(self, job: int, caller: Caller, done_bytes: int, total_bytes: int | None) -> None:
        """Raises NoSuchJob for one that has ended, or is somebody else's: whoever hears it stops."""
        self._jobs[job] = _moved(self._own(job, caller), done_bytes, total_bytes)
        self._changed(())

    def end(self, job: int, caller: Caller, result: JobResult, message: str) -> None:
        """Raises NoSuchJob like :meth:`progress`."""
        self._end(self._own(job, caller), result, message)

    def cancel(self, job: int) -> None:
        """Nobody is to wait for it any longer; its process stops when it hears of it."""
        status = self._jobs[job]
        self._end(status, JobResult.CANCELED, f'the download of "{status.model}" was canceled')

    def release(self, owner: str) -> None:
        """The process that downloads has left the bus: whatever it had under way is over."""
        for status in self.statuses():
            if status.caller.owner == owner:
                text = f'the download of "{status.model}" has failed: its process has gone'
                self._end(status, JobResult.FAILED, text)

    def _own(self, job: int, caller: Caller) -> JobStatus:
        status = self._jobs.get(job)
        if status is None or status.caller.owner != caller.owner:
            raise NoSuchJob(f"there is no download {job} of yours", hint="it was canceled, or has ended")
        return status

    def _end(self, status: JobStatus, result: JobResult, message: str) -> None:
        del self._jobs[status.id]
        self._changed((JobEnded(status.id, status.kind, status.model, result, message, status.caller),))


def _moved(status: JobStatus, done_bytes: int, total_bytes: int | None) -> JobStatus:
    share = min(1.0, done_bytes / total_bytes) if total_bytes else None
    return replace(status, progress=share, done_bytes=done_bytes, total_bytes=total_bytes)
