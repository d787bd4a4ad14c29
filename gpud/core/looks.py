"""Which looks at the devices are under way, so that no more are asked for than are needed. Looks at nothing itself."""


class Looks:
    """Each look that was asked for is answered once. One is urgent at a time; a delayed one is asked for only when none
    comes as early. One that is overdue is slow, and comes: whoever it comes too early for asks again then. Were more
    begun meanwhile, those would hold each other up, and there would be more each time.
    """

    def __init__(self) -> None:
        self._urgent = False
        self._again = False
        self._delayed: list[float] = []

    def ask(self, now: float, delay_s: float) -> bool:
        """Whether a look has to be begun for this wish; it counts as under way then.

        While an urgent one is under way, which may have begun too early for the wish, an urgent wish is remembered.
        """
        if delay_s == 0.0:
            self._again = self._urgent
            began, self._urgent = not self._urgent, True
            return began
        if self._urgent or any(due <= now + delay_s for due in self._delayed):
            return False
        self._delayed.append(now + delay_s)
        self._delayed.sort()
        return True

    def came(self) -> None:
        """One has come. Which of several that was is not known; if it was not the urgent one, that comes later, and one
        more may be asked for meanwhile.
        """
        if self._urgent:
            self._urgent = False
        elif self._delayed:
            self._delayed.pop(0)

    def take_again(self) -> bool:
        """Whether an urgent one was wished for meanwhile; the wish is taken with the answer."""
        again, self._again = self._again, False
        return again

    def pending(self) -> bool:
        return self._urgent or bool(self._delayed)
