"""A gpud that looks for models, until it is killed, and says what it was told is kept: ``python model_writer.py STATE
FIRST``.
"""

import sys
from collections import deque
from pathlib import Path

from gpud.core.record import replace
from gpud.store import FileStore
from store.model_entries import entry

MODELS = 120


def main(state: Path, first: int) -> None:
    print("opening", flush=True)
    store = FileStore(runtime_dir=state, state_dir=state)
    known = store.registry.entries()
    if not known:
        known = store.registry.take([entry(f"m{number}") for number in range(MODELS)], 1)
    look = max(first, 2)
    while True:
        # Each has the name and the path of its neighbour, and all of them have the number of this look.
        places = deque(known)
        places.rotate(1)
        looked = [
            replace(one, name=other.name, found=replace(other.found, stamp=f"{look}"))
            for one, other in zip(known, places, strict=True)
        ]
        known = store.registry.take(looked, look)
        store.registry.used({known[0].id: (1, look, 1.0)})
        print(store.problem or look, flush=True)
        look += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
