"""The copy of the tree in which tests run, and every mutant of the core in it."""

import ast
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mutations
import suite
from mutations import Mutant

TOP = Path(__file__).resolve().parents[2]
CORE = "gpud/core"
TESTS = ("tests/core",)


def copied(top: Path) -> Path:
    """A copy of the tree as it is, with what is not committed yet and without what is made in it."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=TOP, capture_output=True, text=True)
    if listed.returncode:
        sys.exit(f"cannot copy the tree: git ls-files says {listed.stderr.strip()}")
    for name in listed.stdout.splitlines():
        if (TOP / name).is_file():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, top / name)
    for name in TESTS:
        if not (top / name / "conftest.py").exists():
            (top / name / "conftest.py").write_text(suite.WITHOUT_LEFTOVERS)
    return top


def digest(paths: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()[:20]


class Tree:
    """The copy: the core as text and as syntax, and the files with tests."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.sources: dict[str, str] = {}
        self.syntax: dict[str, ast.Module] = {}
        self.mutants: list[Mutant] = []
        for path in sorted((top / CORE).rglob("*.py")):
            name = str(path.relative_to(top))
            self.sources[name] = path.read_text()
            self.syntax[name], found = mutations.mutants_of(name, self.sources[name])
            self.mutants += found

    def path(self, module: str) -> str:
        return str(self.top / module)

    def digest(self) -> str:
        """Of the whole core."""
        return digest([self.top / name for name in self.sources])

    def words_of(self, test: str) -> set[str]:
        """All that is named in a file with tests."""
        return set(re.findall(r"\w+", (self.top / test).read_text()))

    def digest_of(self, test: str) -> str:
        """Of a file with tests, and of what lies beside it and is named in it."""
        file, words = self.top / test, self.words_of(test)
        beside = [one for one in sorted(file.parent.iterdir()) if one.stem in words and one.is_file()]
        return digest([file, *beside])
