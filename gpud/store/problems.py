"""What is wrong with the places that things are kept in: gathered anywhere, told once."""

import threading
from collections.abc import Callable


class Problems:
    """By topic: that records can be written again says nothing of the database. For all threads.

    What is said is told only by :meth:`tell`, which is called while nobody holds a lock: whoever listens may use the
    store.
    """

    def __init__(self, on_problem: Callable[[str], None]) -> None:
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._standing: dict[str, str] = {}
        self._untold: list[str] = []
        self._text = ""

    @property
    def text(self) -> str:
        """Everything that is wrong now. Waits for nobody."""
        return self._text

    def say(self, topic: str, problem: str) -> None:
        """This is wrong from now on. The same sentence is told once until it is solved."""
        with self._lock:
            if self._standing.get(topic) != problem:
                self._standing[topic] = problem
                self._text = "; ".join(self._standing.values())
                self._untold.append(problem)

    def mention(self, event: str) -> None:
        """This happened and is over."""
        with self._lock:
            self._untold.append(event)

    def solved(self, topic: str) -> None:
        if topic in self._standing:
            with self._lock:
                self._standing.pop(topic, None)
                self._text = "; ".join(self._standing.values())

    def tell(self) -> None:
        if not self._untold:
            return
        with self._lock:
            untold, self._untold = self._untold, []
        for problem in untold:
            self._on_problem(problem)
