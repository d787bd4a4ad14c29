"""Keeps what model files said, for as long as they stay as they were on disk. Decides nothing."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import time_ns

from gpud.catalog import gguf
from gpud.catalog.stream import Identity
from gpud.core.modelfile import ModelFile
from gpud.core.record import Struct, field

FILES_KEPT = 256
TENSORS_KEPT = 1_000
"""What is kept is bounded twice: a model of a few hundred tensors takes about 0.1 MB, and some have ten thousand. It is
about what is being loaded: of thousands that were sized one after the other, hardly one is asked for again."""

SETTLED_NS = 50_000_000
"""How long a file must have been left alone to be remembered. The kernel dates changes by its tick (1 to 10 ms): one
more change within the same tick would leave the same date."""


class _Known(Struct):
    file: ModelFile
    identities: tuple[Identity, ...]

    def settled(self, now_ns: int) -> bool:
        return now_ns - max(identity.ctime_ns for identity in self.identities) >= SETTLED_NS

    def holds(self) -> bool:
        return all(identity.holds() for identity in self.identities)


class _Turn(Struct):
    """Who wants the same file at the same time reads it one after the other: the first reads, the rest find it here."""

    lock: Lock = field(default_factory=Lock)
    wanted_by: int = 0


class FileReader:
    """Fulfils :class:`gpud.core.ports.Files`. May be called from any number of threads.

    What is returned is shared: it must not be changed, and cannot be by accident.
    """

    def __init__(
        self,
        files_kept: int = FILES_KEPT,
        tensors_kept: int = TENSORS_KEPT,
        now_ns: Callable[[], int] = time_ns,
    ) -> None:
        self._now_ns = now_ns
        self._files_kept = files_kept
        self._tensors_kept = tensors_kept
        self._tensors = 0
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._turns: dict[str, _Turn] = {}
        self._lock = Lock()

    def read(self, path: str) -> ModelFile:
        """As :func:`gpud.catalog.gguf.read`; what did not change on disk is not read again.

        What counts is what every part is, not how it is called: device, inode, size, times of its last change.
        """
        with self._turn(path):
            with self._lock:
                known = self._known.get(path)
            if known is None or not known.holds():
                self._forget(path)
                began_ns = self._now_ns()
                known = _Known(*gguf.read_parts(path))
                if not known.settled(began_ns):
                    return known.file
            self._keep(path, known)
            return known.file

    @contextmanager
    def _turn(self, path: str) -> Iterator[None]:
        with self._lock:
            turn = self._turns.setdefault(path, _Turn())
            turn.wanted_by += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.wanted_by -= 1
                if turn.wanted_by == 0:
                    del self._turns[path]

    def _forget(self, path: str) -> None:
        with self._lock:
            self._drop(path)

    def _keep(self, path: str, known: _Known) -> None:
        """Remember it as the latest that was asked for; the oldest go."""
        with self._lock:
            self._drop(path)
            self._known[path] = known
            self._tensors += len(known.file.tensors)
            while len(self._known) > 1 and (len(self._known) > self._files_kept or self._tensors > self._tensors_kept):
                self._drop(next(iter(self._known)))

    def _drop(self, path: str) -> None:
        known = self._known.pop(path, None)
        if known is not None:
            self._tensors -= len(known.file.tensors)
