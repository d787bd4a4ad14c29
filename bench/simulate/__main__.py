"""``.venv/bin/python -m bench.simulate``: how long requests wait under gpud's scheduler and under the rules of others.

    .venv/bin/python -m bench.simulate --models models.csv --trace trace.csv --vram-gib 22 --policy all
        [--json] [--slots N]
    .venv/bin/python -m bench.simulate generate --seed 3 --hours 6 --out DIR
    .venv/bin/python -m bench.simulate table [--seeds 8] [--hours 6] [--vram-gib 22 46]
    .venv/bin/python -m bench.simulate cost

models.csv is ``name,bytes,load_s``, trace.csv ``t,model,service_s[,caller]``. What is simulated, and the table that
``table`` prints, are in docs/scheduling.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.simulate import cost, report
from bench.simulate.run import POLICIES, simulate
from bench.simulate.trace import GIB, BadInput, generate, read_models, read_trace, write

ALL = "all"


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


positive.__name__, count.__name__ = "number above 0", "whole number above 0"


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m bench.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, required=True, help="a table: name,bytes,load_s")
    parser.add_argument("--trace", type=Path, required=True, help="a table: t,model,service_s and perhaps caller")
    parser.add_argument("--vram-gib", type=positive, required=True, help="memory of the one GPU")
    parser.add_argument("--policy", choices=[ALL, *POLICIES], default=ALL)
    parser.add_argument("--slots", type=count, default=1, help="requests that one model answers at a time (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    options = parser.parse_args(arguments)
    models = read_models(options.models)
    trace = read_trace(options.trace, models)
    names = list(POLICIES) if options.policy == ALL else [options.policy]
    figures = {name: simulate(name, models, trace, int(options.vram_gib * GIB), options.slots) for name in names}
    if options.json:
        print(json.dumps({"policies": {name: found.as_json() for name, found in figures.items()}}, indent=2))
    else:
        print(report.as_text(figures, len(trace)))


def run_generate(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m bench.simulate generate",
        description="Write models.csv and trace.csv of a generated workload.",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=positive, default=6.0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    models, trace = generate(options.seed, options.hours)
    if not trace:
        raise BadInput(f"no request falls into {options.hours:g} hours: give it more")
    try:
        write(options.out, models, trace)
    except OSError as error:
        raise BadInput(f"cannot write to {options.out}: {error.strerror}") from None
    print(
        f"{options.out}: {len(models)} models, {len(trace)} requests in {options.hours:g} hours (seed {options.seed})"
    )


def run_table(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m bench.simulate table",
        description="Print the table of docs/scheduling.md, as Markdown.",
    )
    parser.add_argument("--seeds", type=count, default=8)
    parser.add_argument("--hours", type=positive, default=6.0)
    parser.add_argument("--vram-gib", type=positive, nargs="+", default=[22.0, 46.0])
    parser.add_argument("--slots", type=count, default=1)
    options = parser.parse_args(arguments)
    workloads = [generate(seed, options.hours) for seed in range(options.seeds)]
    for vram_gib in options.vram_gib:
        found = {
            name: [simulate(name, models, trace, int(vram_gib * GIB), options.slots) for models, trace in workloads]
            for name in POLICIES
        }
        print(report.as_markdown(f"{vram_gib:g} GiB", found), flush=True)


def main(arguments: Sequence[str]) -> int:
    commands = {"generate": run_generate, "table": run_table, "cost": cost.run}
    try:
        if arguments and arguments[0] in commands:
            commands[arguments[0]](arguments[1:])
        else:
            run(arguments)
    except BadInput as error:
        print(f"bench.simulate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
