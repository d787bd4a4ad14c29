"""Asks PyPI's advisories about every version in requirements/*.txt, and writes a bill of materials.

    tools/audit.py              status 0: nothing is known, or what is known is explained in requirements/audit.toml;
                                1: something is known that is not; 3: the advisories could not be asked about all of it

pip-audit alone would call a list clean of which it could look nothing up. What is explained has an end, so that it is
looked at again. The bill, build/sbom.json, is CycloneDX 1.5: what `make install` installs by default.
"""

import datetime
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
FOLDER = TOP / "requirements"
EXPLAINED = FOLDER / "audit.toml"
BILL = TOP / "build" / "sbom.json"

CLEAN, KNOWN, NOT_ASKED = 0, 1, 3


@dataclass(frozen=True)
class Answer:
    """What the advisories say: of which packages nothing could be learned, and what is known of the others."""

    asked: int
    silent: tuple[str, ...]
    known: tuple[tuple[str, str, str], ...]
    """Package with version, the advisory's id, the versions that mend it."""


def pins(path: Path) -> dict[str, list[str]]:
    """The versions of each package; more than one where Python's version decides."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", path.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def rounds(paths: Iterable[Path]) -> list[list[str]]:
    """Lists of ``name==version`` in each of which a name comes once."""
    every: dict[str, set[str]] = {}
    for path in paths:
        for name, versions in pins(path).items():
            every.setdefault(name, set()).update(versions)
    most = max((len(versions) for versions in every.values()), default=0)
    return [
        [f"{name}=={sorted(versions)[turn]}" for name, versions in sorted(every.items()) if turn < len(versions)]
        for turn in range(most)
    ]


def read(reports: Iterable[Mapping[str, Any]]) -> Answer:
    """What pip-audit's reports come to."""
    asked, silent, known = 0, [], []
    for report in reports:
        for package in report["dependencies"]:
            asked += 1
            if "skip_reason" in package:
                silent.append(package["name"])
            for one in package.get("vulns", ()):
                mended = ", ".join(one["fix_versions"]) or "no version yet"
                known.append((f"{package['name']} {package['version']}", one["id"], mended))
    return Answer(asked, tuple(silent), tuple(known))


def judge(answer: Answer, explained: Mapping[str, Mapping[str, Any]], today: datetime.date) -> tuple[int, list[str]]:
    """The exit status, and what to say."""
    said, status = [], CLEAN
    for package, advisory, mended in answer.known:
        why = explained.get(advisory)
        if why is None:
            said.append(
                f"{package}: {advisory}, mended in {mended}: UPGRADE=1 make lock, or explain it in {EXPLAINED.name}"
            )
            status = KNOWN
        elif why["until"] < today:
            said.append(f"{package}: {advisory}, mended in {mended}: was explained until {why['until']}: look again")
            status = KNOWN
        else:
            said.append(f"{package}: {advisory}, explained until {why['until']}: {why['reason']}")
    said += [
        f"{EXPLAINED.name} explains {advisory}, which is not known of any version here: take it out"
        for advisory in sorted(set(explained) - {advisory for _, advisory, _ in answer.known})
        if not answer.silent
    ]
    answered = answer.asked - len(answer.silent)
    if answer.silent:
        said.append(
            f"not audited: of {answer.asked} packages the advisories answered about {answered}; nothing is known about "
            f"{', '.join(answer.silent[:5])}{' and others' if len(answer.silent) > 5 else ''}. Advisories come from "
            "PyPI itself: a mirror that has only its files does not do"
        )
        status = status or NOT_ASKED
    else:
        said.append(f"audited: {answer.asked} packages, {len(answer.known)} advisories")
    return status, said


def ask(lines: Iterable[str]) -> Mapping[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format", "json"]
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "-r", file.name], capture_output=True, text=True, check=False
        )
    try:
        return json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"not audited: pip-audit ended with status {done.returncode}: {last}", file=sys.stderr)
        raise SystemExit(NOT_ASKED) from None


def bill(version: str) -> dict[str, Any]:
    """What an installation has, as CycloneDX."""
    own = {"type": "application", "name": "kernelcore-gpud", "version": version}
    parts = pins(FOLDER / "embedded.txt")
    components = [
        {"type": "library", "name": name, "version": one, "purl": f"pkg:pypi/{name}@{one}"}
        for name, versions in sorted(parts.items())
        for one in versions
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": own}} | {
        "components": components
    }


def main() -> None:
    version = re.search(r'__version__ = "(.+)"', (TOP / "gpud" / "__init__.py").read_text())
    assert version, "gpud/__init__.py says its version"
    BILL.parent.mkdir(exist_ok=True)
    BILL.write_text(json.dumps(bill(version[1]), indent=2) + "\n")
    explained = tomllib.loads(EXPLAINED.read_text())
    answer = read(ask(lines) for lines in rounds(sorted(FOLDER.glob("*.txt"))))
    status, said = judge(answer, explained, datetime.datetime.now(datetime.UTC).date())
    print("\n".join(said))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
