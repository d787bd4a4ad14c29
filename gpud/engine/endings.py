"""How jobs ended, and who waits for that."""

import asyncio
import itertools

from gpud.core.events import JobEnded

# How many jobs that have ended can still be asked about.
KEPT = 256


class Endings:
    """For the event loop's thread."""

    def __init__(self) -> None:
        self._ended: dict[int, JobEnded] = {}
        self._waiters: dict[int, list[asyncio.Future[JobEnded]]] = {}

    def of(self, job: int) -> JobEnded | None:
        """None for one that has not ended, or long ago."""
        return self._ended.get(job)

    def wait(self, job: int) -> asyncio.Future[JobEnded]:
        """How one ends that has not ended long ago."""
        future: asyncio.Future[JobEnded] = asyncio.get_running_loop().create_future()
        if job in self._ended:
            future.set_result(self._ended[job])
        else:
            self._waiters.setdefault(job, []).append(future)
        return future

    def add(self, ended: JobEnded) -> None:
        self._ended[ended.job] = ended
        if len(self._ended) > KEPT:
            del self._ended[next(iter(self._ended))]
        for future in self._waiters.pop(ended.job, ()):
            if not future.done():
                future.set_result(ended)

    def close(self) -> None:
        """Nobody is answered any more."""
        for waiter in itertools.chain.from_iterable(self._waiters.values()):
            waiter.cancel()
