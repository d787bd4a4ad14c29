"""Writes docs/licences.md: under which licence each package stands that gpud may be installed with.

    tools/licences.py            writes it anew
    tools/licences.py --check    says where it is not what the installed packages say, with status 1

What a package says itself counts, as it is installed in .venv or was built for the tests (llama-cpp-python and what it
needs, which are installed nowhere else). Which packages there are is what requirements/*.txt name.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs" / "licences.md"
PARTS = ("core", "compiled", "embedded", "pull", "dbus-fast", "llama-cpp-python")

# What is written in other ways in older packages, as SPDX writes it.
SPDX = {
    "MIT License": "MIT",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
}

HEAD = """\
# Licences

gpud stands under the MIT licence. `make licences` writes this page from what the packages themselves say, and a test
keeps it true. All of them are permissive but tqdm, whose MPL-2.0 is about its own files. Each brings its licence along,
in its folder `.dist-info`. What the tests use besides ([requirements/test.txt](../requirements/test.txt)) is not
installed with gpud.

| package | licence | installed |
|---|---|---|
"""

TAIL = """
Wheels contain the C libraries that they are made of: httptools has llhttp (MIT), PyYAML has libyaml (MIT), xllamacpp
and llama-cpp-python have llama.cpp and ggml (MIT). Engines that gpud starts and does not bring, such as Ollama or vLLM,
stand under licences of their own.
"""


def names_in(part: str) -> list[str]:
    text = (TOP / "requirements" / f"{part}.txt").read_text()
    return re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE)


def installed(folders: Iterable[str]) -> dict[str, metadata.PackageMetadata]:
    """By the name as requirements/*.txt write it; where a package is in two folders, that of the first counts."""
    found: dict[str, metadata.PackageMetadata] = {}
    for one in metadata.distributions(path=list(folders)):
        found.setdefault(re.sub(r"[-_.]+", "-", one.name).lower(), one.metadata)
    return found


def licence(package: metadata.PackageMetadata) -> str:
    """In SPDX's words: the expression, else what the package says freely, else its classifier."""
    free = package.get("License") or ""
    classified = [
        line.rpartition("::")[2].strip() for line in package.get_all("Classifier", []) if line.startswith("License ::")
    ]
    for said in (package.get("License-Expression"), free if "\n" not in free else "", *classified):
        if said:
            return SPDX.get(said, said)
    raise SystemExit(f"cannot tell the licence of {package['Name']} {package['Version']}: its metadata say none")


def page(packages: dict[str, metadata.PackageMetadata]) -> str:
    where: dict[str, str] = {}
    for part in PARTS:
        for name in names_in(part):
            where.setdefault(
                name,
                "always" if part in ("core", "compiled") else "by default" if part == "embedded" else f"extra `{part}`",
            )
    missing = sorted(set(where) - set(packages))
    if missing:
        raise SystemExit(
            f"cannot tell the licences of {', '.join(missing)}: "
            "make setup and tests/provision llama-server install them"
        )
    rows = [f"| {name} | {licence(packages[name])} | {where[name]} |" for name in sorted(where)]
    return HEAD + "\n".join(rows) + "\n" + TAIL


def main() -> None:
    built = subprocess.run([TOP / "tests" / "provision", "llama-server"], stdout=subprocess.PIPE, text=True, check=True)
    now = page(installed([*sys.path, f"{built.stdout.split()[-1]}/site"]))
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(now)
    elif PAGE.read_text() != now:
        differing = sorted(set(PAGE.read_text().splitlines()) ^ set(now.splitlines()))
        raise SystemExit("docs/licences.md is not what the packages say; make licences:\n" + "\n".join(differing))


if __name__ == "__main__":
    main()
