"""A gpud that only learns, until it is killed, and says what it was told is kept: ``python writer.py STATE FIRST``."""

import sys
from pathlib import Path

from gpud.core.events import Kind, Logged, Notice
from gpud.core.learning import Measured
from gpud.core.quote import Estimate, Part, Source
from gpud.store import FileStore

BATCH = 8


def main(state: Path, first: int) -> None:
    print("opening", flush=True)
    store = FileStore(runtime_dir=state, state_dir=state)
    number = first
    while True:
        store.learn(f"key-{number}", Measured(number, number, 1.0))
        store.learn_residual("place", 100)
        store.keep_probe(f"key-{number}", Estimate("llama", (Part("CUDA0", 0, number),), Source.PROBE))
        store.log([Logged(number, Notice(Kind.IDLE, f"{number}", f"batch-{number}", detail=("x" * 500,)))] * BATCH)
        print(store.problem or number, flush=True)
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
