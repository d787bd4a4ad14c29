"""gpud beside what people use in its place today, with real engines and two tiny models, in one run."""

import argparse
from pathlib import Path


def name_outside_programs(parser: argparse.ArgumentParser) -> None:
    """The options that say where programs of others are, and what they are called."""
    parser.add_argument("--llama-swap", type=Path, metavar="PATH", help="a llama-swap that was built elsewhere")
    parser.add_argument("--llama-swap-version", metavar="WORDS", help="what to call it, where it does not know")
    parser.add_argument("--ollama", type=Path, metavar="PATH", help='the program that "tests/provision ollama" makes')
    parser.add_argument("--ollama-version", metavar="WORDS", help="what to call it, where it does not know")
