"""Who waits for a claim to be granted. Knows nothing of memory: the scheduler grants."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gpud.core.errors import Canceled, GpudError, NoSuchClaim


class Claimants:
    """A future for each claim until it is over; for the event loop's thread."""

    def __init__(self) -> None:
        self._futures: dict[int, asyncio.Future[None]] = {}

    @contextmanager
    def asked(self, claim: int) -> Iterator[None]:
        """While a claim is asked for, which may raise why it cannot be granted, and be granted at once."""
        self._futures[claim] = asyncio.get_running_loop().create_future()
        try:
            yield
        except GpudError:
            del self._futures[claim]
            raise

    async def settled(self, claim: int) -> None:
        """Returns when it is granted, raises why it is not."""
        future = self._futures.get(claim)
        if future is None:
            raise no_such_claim(claim)
        await asyncio.shield(future)

    def granted(self, claim: int) -> None:
        future = self._futures.get(claim)
        if future is not None and not future.done():
            future.set_result(None)

    def over(self, claim: int, error: GpudError | None) -> None:
        """It was refused, or given up, or given back after it had been granted."""
        future = self._futures.pop(claim, None)
        if future is not None and not future.done():
            future.set_exception(error or Canceled(f"claim {claim} was given up"))
            # Nobody may be waiting for it: that is no mistake.
            future.exception()


def no_such_claim(claim: int) -> NoSuchClaim:
    return NoSuchClaim(f"there is no claim {claim}", hint="it may have been given back already")
