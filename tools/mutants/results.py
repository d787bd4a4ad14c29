"""What came of each mutant, this time and before. Written as it comes, so that a run can be ended and gone on with."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from campaign import say
from mutations import Mutant
from tree import TOP

RESULTS = TOP / "build" / "mutants.json"

OFTEN = 50
"""After so many mutants what came of them is written."""


class Results:
    """A mutant is kept with the number of the suite that it was tried with: the tests as they were, file by file."""

    def __init__(self, *, keep: bool) -> None:
        before = json.loads(RESULTS.read_text()) if keep and RESULTS.exists() else {}
        self.mutants: dict[str, dict[str, Any]] = before.get("mutants", {})
        self._suites: list[Mapping[str, str]] = before.get("suites", [])
        self._suite = -1
        self._begun_s = time.monotonic()
        self._count = self._lived = 0

    def tried_with(self, digests: Mapping[str, str]) -> None:
        """From now on with these tests."""
        if digests not in self._suites:
            self._suites.append(digests)
        self._suite = self._suites.index(digests)

    def survived(self, mutant: Mutant) -> bool:
        return self.mutants.get(mutant.key, {}).get("how") == "survived"

    def tried(self, mutant: Mutant) -> set[str]:
        """The files of whose tests none has seen it, and that have not changed since."""
        if not self.survived(mutant):
            return set()
        then, now = self._suites[self.mutants[mutant.key]["suite"]], self._suites[self._suite]
        return {name for name in now if now[name] == then.get(name)}

    def put(self, mutant: Mutant, how: str, by: str, tests: int) -> None:
        """One that survived is shown at once."""
        if how == "survived":
            tests += self.mutants[mutant.key]["tests"] if self.survived(mutant) else 0
            before, after = mutant.texts()
            count = f"{tests} tests tried" if tests else "no test executes it"
            print(f"{mutant.module}:{mutant.line} {mutant.where.scope} ({mutant.kind}, {count})", flush=True)
            print(f"  - {before}\n  + {after}", flush=True)
        self.mutants[mutant.key] = {"how": how, "by": by, "tests": tests, "suite": self._suite}
        self._count += 1
        self._lived += how == "survived"
        if self._count % OFTEN == 0:
            say(f"{self._count} after {time.monotonic() - self._begun_s:.0f} s, {self._lived} survived")
            self.write()

    def write(self) -> None:
        RESULTS.parent.mkdir(exist_ok=True)
        beside = RESULTS.with_suffix(".new")
        beside.write_text(json.dumps({"suites": self._suites, "mutants": self.mutants}, indent=0))
        beside.replace(RESULTS)

    def table(self, mutants: Sequence[Mutant]) -> tuple[str, float]:
        """A row a module, and what was seen of all, in percent."""
        rows: dict[str, dict[str, int]] = {}
        for mutant in mutants:
            if mutant.key in self.mutants:
                row = rows.setdefault(mutant.module, {"killed": 0, "timed out": 0, "survived": 0})
                row[self.mutants[mutant.key]["how"]] += 1
        total = {how: sum(row[how] for row in rows.values()) for how in ("killed", "timed out", "survived")}
        text = ["| module | mutants | killed | timed out | survived | seen |", "|---|---|---|---|---|---|"]
        percent = 100.0
        for name, row in [*rows.items(), ("all", total)]:
            count = sum(row.values())
            percent = 100.0 * (count - row["survived"]) / max(1, count)
            cells = (name, count, row["killed"], row["timed out"], row["survived"], f"{percent:.1f} %")
            text.append(f"| {' | '.join(map(str, cells))} |")
        return "\n".join(text), percent
