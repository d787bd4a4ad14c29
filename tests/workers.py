"""How the tests are shared out when several pytest-xdist workers run them (``make test``); one alone needs none of it.

A file's tests stay with one worker, so that what is made for a module is made once; so do those of a room that share
something for the session. What takes long comes first: at the end no worker waits for another.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/booted/",)
"""Rooms whose files share what takes long to make."""

LONG = ("tests/booted/", "tests/desktop/", "tests/test_linters.py", "tests/daemon/", "tests/cli/", "tests/checklist/")
"""What is begun first, in this order: a file of these takes up to two minutes."""


STAND_IN = "fake_nvml"
"""What a program of one test holds, it holds of all stand-ins for GPUs that there are on the machine at the time: files
that use them are for one worker.
"""


@cache
def uses_gpus(path: str) -> bool:
    file = Path(__file__).parent.parent / path
    return file.is_file() and STAND_IN in file.read_text()


def rank(path: str) -> int:
    """Where a test of this file stands in the order."""
    return next((place for place, beginning in enumerate(LONG) if path.startswith(beginning)), len(LONG))


def in_order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    return sorted(items, key=lambda item: rank(item.nodeid))


class Sharing(LoadScopeScheduling):
    """Hands files, and whole rooms where they belong together, to whichever worker is free."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if uses_gpus(path):
            return STAND_IN
        return next((room for room in TOGETHER if path.startswith(room)), path)
