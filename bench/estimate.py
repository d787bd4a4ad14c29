"""``.venv/bin/python -m bench.estimate [--measure] [--server PATH] [MODEL...]``: how far computed sizes are from the
real ones.

Writes files with the headers of published models, asks the real llama-server for its record of each with five sets of
arguments, and prints the differences as a table in Markdown: by how much keys, values and states are off (in MiB, as
the record has them), the weights, the buffers and all together. Then what an estimate costs.

``--measure`` prints instead what the buffers of this build are, in floats for each token: what was measured, what the
formula has, and the number of widths (``Rules.widths``) that would make both equal. The factors of
``gpud/core/estimate/compute.py`` and the widths of the table of architectures are fitted to that.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))

from core.dry_record import ARGUMENTS, Record, dry_records  # noqa: E402
from core.model_headers import HEADERS, Header  # noqa: E402

from gpud.core.estimate import Shape, estimate  # noqa: E402
from gpud.core.estimate.cache import cells  # noqa: E402
from gpud.core.estimate.compute import FACTORS, FLOAT_BYTES, buffers  # noqa: E402
from gpud.core.plan import Plan  # noqa: E402
from gpud.core.quote import Part  # noqa: E402

MIB = 1 << 20

MEASURED: tuple[tuple[str, Plan], ...] = (
    ("-c 4096 -np 1", Plan(context=4096, parallel=1)),
    ("-c 16384 -np 1 -ub 2048", Plan(context=16384, parallel=1, micro_batch=2048)),
    ("-c 16384 -np 8", Plan(context=16384, parallel=8)),
    ("-c 4096 -np 1 -fa off", Plan(context=4096, parallel=1, flash_attention="off")),
    ("-c 8192 -np 1 --embeddings", Plan(context=8192, parallel=1, embeddings=True)),
)

DEBUG = ("-lv", "5")
"""The level at which the engine says its buffers to the hundredth of a MiB."""


def version(server: str) -> str:
    done = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).splitlines()[0].removeprefix("version: ")


def provision() -> str:
    made = subprocess.run([TOP / "tests/provision", "llama-server"], stdout=subprocess.PIPE, text=True, check=True)
    return str(Path(made.stdout.strip()) / "site/bin/llama-server")


def compare(server: str, headers: Iterable[Header], folder: Path) -> None:
    """One line for each architecture and model, the worst of all its argument sets in each column."""
    print("| architecture | model | runs | keys, values, states | weights | buffers | total |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    runs = 0
    for header in headers:
        path = header.write(folder / "model.gguf")
        pairs = []
        for arguments, plan in ARGUMENTS:
            (record,) = dry_records(server, ["-m", str(path), *arguments.split(), *DEBUG])
            (part,) = estimate(header.file(), plan).parts
            pairs.append((part, record))
        path.unlink()
        totals = [(part.total_bytes / MIB / record.total - 1) * 100 for part, record in pairs]
        worst = max(worst, *map(abs, totals))
        runs += len(pairs)
        context = max(abs((part.kv_bytes + part.state_bytes) // MIB - record.context) for part, record in pairs)
        print(
            f"| {header.architecture} | {header.name} | {len(pairs)} | {context} MiB | {weights_off(pairs)} MiB "
            f"| {spread([(part.compute_bytes / MIB / record.buffers - 1) * 100 for part, record in pairs])} "
            f"| {spread(totals, 2)} |"
        )
    print(f"\n{runs} runs; the largest error in total is {worst:.2f} %. Arguments: ", end="")
    print(", ".join(f"`{arguments}`" for arguments, _ in ARGUMENTS) + ".")


def weights_off(pairs: Sequence[tuple[Part, Record]]) -> int:
    """The record has two rows for weights, each rounded down: up to one MiB between them is its rounding."""
    return max(max(-off, off - 1, 0) for off in (part.weights_bytes // MIB - record.model for part, record in pairs))


def spread(errors: Sequence[float], places: int = 0) -> str:
    # Adding nothing makes a rounded -0 a +0.
    low, high = (round(error, places) + 0.0 for error in (min(errors), max(errors)))
    return f"{low:+.{places}f} … {high:+.{places}f} %"


def measure(server: str, headers: Iterable[Header], folder: Path) -> None:
    print("| architecture | model | arguments | buffers | floats a token | formula | widths that fit |")
    print("|---|---|---|---|---|---|---|")
    for header in headers:
        path = header.write(folder / "model.gguf")
        shape = Shape.of(header.file())
        work = shape.work
        for arguments, plan in MEASURED:
            (record,) = dry_records(server, ["-m", str(path), *arguments.split(), *DEBUG])
            size = cells(shape, plan)
            made = buffers(shape, plan, size)
            masks = made.inputs - size.tokens * work.width * FLOAT_BYTES
            each = (record.buffers * MIB - masks) / FLOAT_BYTES / size.tokens
            formula = (made.all - masks) / FLOAT_BYTES / size.tokens
            inner = (FACTORS.gated if work.gated else FACTORS.plain) * max(
                work.feed_forward, work.experts_used * work.expert_feed_forward
            )
            widths = (each - inner - work.per_layer) / work.width
            print(
                f"| {header.architecture} | {header.name} | `{arguments}` | {record.buffers:.2f} MiB | {each:.0f} "
                f"| {formula:.0f} | {widths:.2f} |",
                flush=True,
            )
        path.unlink()


def cost(headers: Iterable[Header]) -> None:
    """The processor time of one estimate, and of what is made once for each file."""
    once, each = [], []
    for header in headers:
        file = header.file()
        start = time.process_time()
        shape = Shape.of(file)
        shape.weights()
        once.append((time.process_time() - start) * 1000)
        plans = [Plan(context=8192, gpus=2, layers=layers) for layers in range(shape.count + 2)]
        start = time.process_time()
        for plan in plans:
            estimate(shape, plan)
        each.append((time.process_time() - start) * 1000 / len(plans))
    print(f"\nOnce for each file: {statistics.median(once):.2f} ms (at most {max(once):.2f}); ", end="")
    print(f"each estimate: {statistics.median(each):.3f} ms (at most {max(each):.3f}).")


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m bench.estimate", description=__doc__.partition("\n\n")[2]
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of models, all by default")
    parser.add_argument("--measure", action="store_true", help="print what the buffers of this build are")
    parser.add_argument("--server", help="the llama-server to ask; by default the one that the tests provide")
    options = parser.parse_args()
    unknown = [name for name in options.models if name not in HEADERS]
    if unknown:
        parser.error(f"no header of {', '.join(unknown)}; there are {', '.join(HEADERS)}")
    headers = [HEADERS[name] for name in options.models or HEADERS]
    server = options.server or provision()
    print(f"llama-server {version(server)}, without a GPU\n")
    with tempfile.TemporaryDirectory(prefix="gpud-estimate-") as folder:
        (measure if options.measure else compare)(server, headers, Path(folder))
    cost(headers)


if __name__ == "__main__":
    main()
