"""``.venv/bin/python -m bench.gguf [--repeats N] [FILE...]``: what it takes to read the header of a model file.

Writes files whose vocabularies are as large as real ones are, reads each in a process of its own, and prints one line
for each figure: what, the median and the spread, and the bar. The ratio is to a plain read of the same bytes, which
no reader can undercut. Files that are named are measured as well.
"""

import argparse
import json
import random
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent

VOCABULARIES = (
    # MB of header, tokens, their bytes on average, merges, their bytes on average
    (0.7, 32_000, 6, 0, 0),
    (6, 151_936, 7, 151_387, 10),
    (8, 128_256, 7, 280_147, 11),
    (16, 262_144, 7, 514_906, 12),
)
BAR_MS = 60.0

MEASURE = """
import json, sys, time
from pathlib import Path
from gpud.catalog import gguf

path, header_bytes, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def plain():
    with open(path, "rb", buffering=0) as file:
        left = header_bytes
        while left > 0 and (piece := file.read(min(left, 256 * 1024))):
            left -= len(piece)

def times(work):
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return taken

def memory_bytes(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

plain()
Path("/proc/self/clear_refs").write_text("5")  # The peak is counted from here.
before = memory_bytes("VmRSS")
began = time.perf_counter()
model = gguf.read(path)
first = (time.perf_counter() - began) * 1000
peak = memory_bytes("VmHWM") - before
print(json.dumps({"first": first, "read": times(lambda: gguf.read(path)), "plain": times(plain), "peak_bytes": peak,
    "vocabulary": model.vocabulary, "tensors": len(model.tensors)}))
"""


def report(what: str, values: Sequence[float], unit: str, bar: str = "", places: int = 1) -> None:
    low, middle, high = min(values), statistics.median(values), max(values)
    spread = f"{middle:.{places}f} {unit}  (min {low:.{places}f}, max {high:.{places}f}, n={len(values)})"
    print(f"{what:<52} {spread:<52} {f'bar: {bar}' if bar else ''}".rstrip(), flush=True)


def strings(count: int, mean: int, chance: random.Random) -> bytes:
    """So many, of lengths as vocabularies have them: most are short, one in two thousand has hundreds of bytes."""
    out = bytearray()
    for _ in range(count):
        length = (
            max(1, round(chance.gammavariate(4, mean / 4))) if chance.random() > 0.0005 else chance.randint(64, 400)
        )
        out += struct.pack("<Q", length) + b"x" * length
    return bytes(out)


def array(name: str, kind: int, count: int, content: bytes) -> bytes:
    return text(name) + struct.pack("<IIQ", 9, kind, count) + content


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def write(path: Path, tokens: int, token_bytes: int, merges: int, merge_bytes: int) -> int:
    """A model with so large a vocabulary and 300 tensors; returns where its header ends."""
    chance = random.Random(1)
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        array("tokenizer.ggml.tokens", 8, tokens, strings(tokens, token_bytes, chance)),
        array("tokenizer.ggml.token_type", 5, tokens, bytes(4 * tokens)),
        array("tokenizer.ggml.merges", 8, merges, strings(merges, merge_bytes, chance)),
    ]
    tensors = [
        text(f"blk.{number}.ffn_down.weight") + struct.pack("<IQQIQ", 2, 32, 1, 0, 128 * number)
        for number in range(300)
    ]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs + tensors)
    path.write_bytes(header + bytes(128 * (len(tensors) + 1)))
    return len(header)


def measure(name: str, path: Path, header_bytes: int, repeats: int, bar_ms: float | None) -> bool:
    """Print the figures of one file; whether it is within its bar."""
    argv = [sys.executable, "-c", MEASURE, str(path), str(header_bytes), str(repeats)]
    found = json.loads(subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=True).stdout)
    print(f"{name}: {header_bytes / 1e6:.1f} MB, {found['vocabulary']:,} tokens, {found['tensors']:,} tensors")
    within = f"<= {bar_ms:.0f} ms" if bar_ms else ""
    report("  header read", found["read"], "ms", within)
    report("  the first time in a process", [found["first"]], "ms")
    report("  plain read of the same bytes", found["plain"], "ms", places=2)
    read, plain = statistics.median(found["read"]), statistics.median(found["plain"])
    print(f"  {'ratio to the plain read':<50} {read / plain:.1f}")
    report("  peak memory beyond a process that only imported it", [found["peak_bytes"] / 2**20], "MiB")
    return not bar_ms or read <= bar_ms


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m bench.gguf", description="measure the reader of model files"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="measure this file as well")
    options = parser.parse_args()
    within = []
    with tempfile.TemporaryDirectory() as folder:
        for size, *shape in VOCABULARIES:
            path = Path(folder) / "model.gguf"
            header_bytes = write(path, *shape)
            within.append(measure(f"vocabulary of {size} MB", path, header_bytes, options.repeats, BAR_MS))
    for file in options.files:
        measure(str(file), file, file.stat().st_size, options.repeats, None)
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())
