"""A place for a store."""

from pathlib import Path

from gpud.store import FileStore


class Place:
    """The directories of one gpud, and what its stores complained of."""

    def __init__(self, top: Path) -> None:
        self.runtime = top / "run"
        self.state = top / "state"
        self.database = self.state / "registry.db"
        self.told: list[str] = []
        self._open: list[FileStore] = []

    def store(self) -> FileStore:
        made = FileStore(runtime_dir=self.runtime, state_dir=self.state, on_problem=self.told.append)
        self._open.append(made)
        return made

    def again(self) -> FileStore:
        """As after a restart: what was open is closed."""
        self.close()
        return self.store()

    def close(self) -> None:
        for store in self._open:
            store.close()
        self._open.clear()


def fill(directory: Path) -> Path:
    """A file that takes all the room there is; remove it to make room again."""
    ballast = directory / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast
