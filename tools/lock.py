"""Writes requirements/*.txt: every package that gpud is installed with, its version and the hashes of its files.

    tools/lock.py              keeps the versions that are there, and fits them to what pyproject.toml asks for now
    tools/lock.py --upgrade    takes the newest that pyproject.toml allows
    tools/lock.py --check      asks no network: says what pyproject.toml wants and the files do not have, with status 1

``core.txt`` is what gpud itself needs, ``compiled.txt`` the part of it that has no wheel, ``NAME.txt`` core and the
extra NAME, ``build.txt`` what builds it, ``maintain.txt`` what the goals lock, audit and dist of the Makefile run. What
is ever installed together agrees, and it holds for every Python from the oldest on. A hash is that of a file, whatever
mirror it comes from: none is named.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
FOLDER = TOP / "requirements"
OLDEST = "3.11"
FIRST = "# Written by `make lock` for: "
MAINTAIN = FOLDER / "maintain.in"
COMPILED = ("systemd-python",)
"""Of these there is no wheel: they have a file of their own, because what was compiled has no hash to be known by."""


def parts() -> dict[str, tuple[str, ...]]:
    """What each file is for, as it is asked for."""
    document = tomllib.loads((TOP / "pyproject.toml").read_text())
    project = document["project"]
    core = tuple(one for one in project["dependencies"] if not is_compiled(one))
    compiled = tuple(one for one in project["dependencies"] if is_compiled(one))
    made = {
        "core": core,
        **({"compiled": compiled} if compiled else {}),
        "build": tuple(document["build-system"]["requires"]),
    }
    made |= {name: (*core, *wanted) for name, wanted in project["optional-dependencies"].items()}
    lines = (line.strip() for line in MAINTAIN.read_text().splitlines())
    made["maintain"] = tuple(line for line in lines if line and not line.startswith("#"))
    return made


def is_compiled(requirement: str) -> bool:
    return re.split(r"[\s<>=!~;\[]", requirement)[0] in COMPILED


def head(wanted: tuple[str, ...]) -> str:
    return f"{FIRST}{'; '.join(sorted(wanted))}\n"


def disagreements() -> list[str]:
    """Sentences about what pyproject.toml wants and the files were not made for."""
    wanted = parts()
    found = []
    for name, asked in wanted.items():
        path = FOLDER / f"{name}.txt"
        if not path.exists():
            found.append(f"{path.relative_to(TOP)} is missing")
            continue
        written = path.read_text().splitlines()[0] + "\n"
        if written != head(asked):
            had = set(written.removeprefix(FIRST).rstrip().split("; "))
            differing = ", ".join(sorted(had ^ set(asked)))
            found.append(f"{path.relative_to(TOP)} was made for other requirements: {differing}")
    strays = {path.stem for path in FOLDER.glob("*.txt")} - set(wanted)
    found += [f"requirements/{name}.txt is for nothing that pyproject.toml has" for name in sorted(strays)]
    return found


def resolve(wanted: tuple[str, ...], target: Path, *options: str) -> str:
    """The pins of all that is wanted, with what it needs in turn. ``target``: versions to keep where they fit."""
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "-", "--universal", "--generate-hashes"]
    command += ["--python-version", OLDEST, "--no-header", "--no-annotate", "--quiet", "-o", str(target)]
    text = "\n".join(wanted)
    done = subprocess.run([*command, *options], input=text, cwd=TOP, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"cannot lock {target.name}: uv ended with status {done.returncode}, see above")
    # All of it is for Linux (pyproject.toml says so to uv): that need not stand at each line.
    return re.sub(r"( ;| and) sys_platform == 'linux'(?= )", "", target.read_text())


def write(*, upgrade: bool) -> None:
    wanted = parts()
    newest = ("--upgrade",) if upgrade else ()
    with tempfile.TemporaryDirectory() as work:
        # One set of versions for all that is ever installed together; each file then takes its part of it.
        together = Path(work) / "all.txt"
        together.write_text(
            "".join((FOLDER / f"{n}.txt").read_text() for n in wanted if (FOLDER / f"{n}.txt").exists())
        )
        everything = {one for name, asked in wanted.items() if name != "maintain" for one in asked}
        resolve(tuple(sorted(everything)), together, *newest)
        for name, asked in wanted.items():
            part = Path(work) / f"{name}.txt"
            kept = FOLDER / part.name
            if name != "maintain":
                pins = resolve(asked, part, "--constraints", str(together))
            else:
                part.write_text(kept.read_text() if kept.exists() else "")
                pins = resolve(asked, part, *newest)
            kept.write_text(head(asked) + pins)


def main() -> None:
    options = argparse.ArgumentParser(description="See the first lines of this file.")
    options.add_argument("--upgrade", action="store_true")
    options.add_argument("--check", action="store_true")
    chosen = options.parse_args()
    if not chosen.check:
        write(upgrade=chosen.upgrade)
    elif found := disagreements():
        raise SystemExit(
            "\n".join([*found, 'make lock renews them, with the versions that they have; "UPGRADE=1" the newest'])
        )


if __name__ == "__main__":
    main()
