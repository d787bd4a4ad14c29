"""``.venv/bin/python -m bench.catalog [--files N...] [--repeats N]``: what it takes to find the models on disk.

Makes folders of so many model files of four families, looks through them in processes of their own and prints one line
for each figure: what, the median and the spread, and the bar; and what the processor alone took, which holds on a busy
machine too. The files are sparse, their weights and vocabularies are
holes: a hole reads as empty strings, of which there are as many as real vocabularies have. The ratio is to ``find -type
f`` and a plain read of the beginnings of the same files, in a process that has them in its cache as well.

Then a file is copied into a watched folder, and it is measured how long it takes until that is told, and until a look
at that file has found it; and what the processor takes for that look alone.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.gguf import report, text
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Found, Roots

TOP = Path(__file__).resolve().parent.parent

FAMILIES = (
    # architecture, tokens, merges, tensors
    ("llama", 128_256, 280_147, 291),
    ("qwen3", 151_936, 151_387, 398),
    ("gemma3", 262_144, 514_906, 444),
    ("mistral", 32_000, 0, 291),
)
TENSOR_BYTES = 4096 * 4096 // 256 * 144
PLAIN_BYTES = 64 * 1024
"""What a plain read takes of each file: as much as a look reads of its beginning."""

COLD_BAR_S, WARM_BAR_S, TOLD_BAR_S = 2.0, 0.2, 1.0

MEASURE = """
import gc, json, resource, sys, time
from pathlib import Path
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Roots

def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

roots, count = Roots(folders=(sys.argv[1],)), int(sys.argv[2])
finder = ModelFinder()
before = resident_bytes()
began = time.process_time()
cold = finder.scan(roots, {})
cold_cpu = time.process_time() - began
assert len(cold.models) == count and not cold.troubles, (len(cold.models), cold.troubles[:3])
known = {place.path: found for found in cold.models for place in found.places}
began = time.process_time()
warm = finder.scan(roots, known)
warm_cpu = time.process_time() - began
assert warm.read == 0 and warm.models == cold.models
seconds = cold.seconds, warm.seconds
del cold, warm, known
kept = resident_bytes() - before
print(json.dumps({"cold": seconds[0], "warm": seconds[1], "cold_cpu": cold_cpu, "warm_cpu": warm_cpu, "kept": kept}))
"""

PLAIN = """
import os, subprocess, sys, time
began, cpu = time.perf_counter(), time.process_time()
listed = subprocess.run(["find", sys.argv[1], "-type", "f"], capture_output=True, check=True).stdout.splitlines()
for path in listed:
    with open(path, "rb", buffering=0) as file:
        file.read(int(sys.argv[2]))
print(time.perf_counter() - began, time.process_time() + sum(os.times()[2:4]) - cpu)
"""


def pair(key: str, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def write(path: Path, number: int) -> None:
    """One model, written long ago."""
    architecture, tokens, merges, tensors = FAMILIES[number % len(FAMILIES)]
    pieces = [
        b"GGUF" + struct.pack("<IQQ", 3, tensors, 8),
        pair("general.architecture", 8, text(architecture)),
        pair("general.name", 8, text(f"model {number:05}")),
        pair("general.size_label", 8, text("8B")),
        pair(f"{architecture}.context_length", 4, struct.pack("<I", 32768)),
        pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, tokens)),
        8 * tokens,
        pair("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, merges)),
        8 * merges,
        pair("tokenizer.chat_template", 8, text("{% if tools %}" + "x" * 4000)),
        pair("general.file_type", 4, struct.pack("<I", 15)),
        *(
            text(f"blk.{index}.ffn_down.weight") + struct.pack("<IQQIQ", 2, 4096, 4096, 12, TENSOR_BYTES * index)
            for index in range(tensors)
        ),
    ]
    with path.open("wb") as file:
        for piece in pieces:
            if isinstance(piece, int):
                file.seek(piece, os.SEEK_CUR)
            else:
                file.write(piece)
        file.truncate(file.tell() + 32 + TENSOR_BYTES * tensors + 32 * number)
    os.utime(path, (1_700_000_000, 1_700_000_000))


def write_all(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"publisher-{number // 50}" / f"model-{number}-8B-Q4_K_M.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, number)


def said(program: str, *words: str) -> str:
    """What a program in a process of its own prints."""
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True).stdout


def measure(folder: Path, count: int, repeats: int) -> bool:
    """The figures of one folder; returns whether they are within their bars."""
    plain = [[float(word) for word in said(PLAIN, str(folder), str(PLAIN_BYTES)).split()] for _ in range(repeats)]
    looks = [json.loads(said(MEASURE, str(folder), str(count))) for _ in range(repeats)]
    cold, warm = [look["cold"] for look in looks], [look["warm"] for look in looks]
    name = f"{count:,} files"
    report(f"{name}: first look", cold, "s", f"{COLD_BAR_S} s", 2)
    report(f"{name}: find and a plain read", [seconds for seconds, _ in plain], "s", "", 2)
    print(f"{'':<4}ratio {statistics.median(cold) / statistics.median(seconds for seconds, _ in plain):.1f} x")
    report(f"{name}: another look, nothing new", warm, "s", f"{WARM_BAR_S} s", 3)
    report(f"{name}: first look, processor alone", [look["cold_cpu"] for look in looks], "s", "", 2)
    report(f"{name}: find and a plain read, processor alone", [seconds for _, seconds in plain], "s", "", 2)
    report(f"{name}: another look, processor alone", [look["warm_cpu"] for look in looks], "s", "", 3)
    report(f"{name}: memory kept after both", [look["kept"] / 2**20 for look in looks], "MiB")
    return statistics.median(cold) <= COLD_BAR_S and statistics.median(warm) <= WARM_BAR_S


async def measure_notice(folder: Path, count: int, repeats: int) -> bool:
    """Copies into the folder, one after the other; from the start of ``cp``."""
    finder, told = ModelFinder(), asyncio.Event()
    roots = Roots(folders=(str(folder),))
    finder.watch(roots, told.set)

    def looked() -> tuple[set[str], float]:
        """Where models were found among the files that are named, and the time of the processor."""
        began = time.thread_time()
        files = finder.noticed()
        assert files is not None, "the kernel has named no file"
        finding = finder.look_at(roots, files, {path: now[path] for path in files if path in now})
        assert finding is not None, "the file could not be looked at alone"
        for path in files:
            now.pop(path, None)
        now.update({found.path: found for found in finding.models})
        return {found.path for found in finding.models}, time.thread_time() - began

    now: dict[str, Found] = {}
    whole = await asyncio.to_thread(finder.scan, roots, {})
    now.update({place.path: found for found in whole.models for place in found.places})
    source = folder.parent / "new.gguf"
    write(source, 999_999)
    noticed, listed, alone = [], [], []
    for number in range(repeats):
        told.clear()
        target = folder / f"new-{number}.gguf"
        began = time.perf_counter()
        copy = await asyncio.create_subprocess_exec("cp", "--sparse=always", str(source), str(target))
        await asyncio.wait_for(told.wait(), 30)
        noticed.append(time.perf_counter() - began)
        found, taken = await asyncio.to_thread(looked)
        listed.append(time.perf_counter() - began)
        alone.append(1000 * taken)
        assert found == {str(target)}
        await copy.wait()
        told.clear()
        target.unlink()
        await asyncio.wait_for(told.wait(), 30)
        assert (await asyncio.to_thread(looked))[0] == set()
    finder.close()
    report(f"{count:,} files: from cp to the call", noticed, "s", "", 3)
    report(f"{count:,} files: from cp to found", listed, "s", f"{TOLD_BAR_S} s", 3)
    report(f"{count:,} files: a look at the one, processor alone", alone, "ms", "", 1)
    return statistics.median(listed) <= TOLD_BAR_S


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m bench.catalog",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    within = []
    for count in options.files:
        top = Path(tempfile.mkdtemp())
        try:
            folder = top / "models"
            write_all(folder, count)
            within.append(measure(folder, count, options.repeats))
            within.append(asyncio.run(measure_notice(folder, count, options.repeats)))
        finally:
            shutil.rmtree(top)
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())
