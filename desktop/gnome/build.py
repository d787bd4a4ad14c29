"""Makes the folder of the GNOME Shell extension, ready to be put where the shell looks for extensions.

    desktop/gnome/build.py 45 FOLDER     for GNOME Shell 45 and later
    desktop/gnome/build.py 43 FOLDER     for GNOME Shell 43
    desktop/gnome/build.py --list 43     which files that would be

Both are made of the same modules in shared/. GNOME Shell 43 knows no modules of the language, so their import and
export lines are translated for it, and nothing else of them. A line that is not understood is an error.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RELEASES = {"43": ["43"], "45": ["45", "46", "47", "48", "49"]}
DOMAIN = "gpud-gnome"

IMPORT = re.compile(r"^import\s+(?P<what>\* as \w+|\{[^}]*\}|\w+)\s+from\s+'(?P<where>[^']+)';$", re.MULTILINE)
EXPORTS = (
    (re.compile(r"^export (async )?function (?=\w+\()", re.MULTILINE), r"\1function "),
    (re.compile(r"^export class (?P<name>\w+)", re.MULTILINE), r"var \g<name> = class \g<name>"),
    (re.compile(r"^export const (?=\w+ = )", re.MULTILINE), "var "),
)
LEFT = re.compile(r"^\s*(?:import|export)\b.*$|\bimport\.meta\b.*$|^.*\bimport\(.*$", re.MULTILINE)


def main(arguments: list[str]) -> None:
    if len(arguments) == 2 and arguments[0] == "--list" and arguments[1] in RELEASES:
        sys.stdout.writelines(f"{name}\n" for name in names(arguments[1]))
        return
    if len(arguments) != 2 or arguments[0] not in RELEASES:
        sys.exit("usage: desktop/gnome/build.py 43|45 FOLDER, or --list 43|45")
    for program in ("glib-compile-schemas", "msgfmt"):
        if not shutil.which(program):
            sys.exit(f"cannot build the GNOME extension: {program} is missing; apt-get install gettext libglib2.0-bin")
    build(arguments[0], Path(arguments[1]))


def build(release: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((HERE / "shared").glob("*.js")):
        text = source.read_text()
        (folder / source.name).write_text(without_modules(text, source.name) if release == "43" else text)
    for source in (*sorted((HERE / f"shell{release}").glob("*.js")), HERE / "stylesheet.css"):
        shutil.copyfile(source, folder / source.name)
    metadata = json.loads((HERE / "metadata.json").read_text()) | {"shell-version": RELEASES[release]}
    metadata["version-name"] = version()
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n")
    for kind in ("icons", "schemas"):
        (folder / kind).mkdir(exist_ok=True)
        for source in (HERE / kind).iterdir():
            shutil.copyfile(source, folder / kind / source.name)
    subprocess.run(["glib-compile-schemas", "--strict", folder / "schemas"], check=True)
    for source in (HERE / "po").glob("*.po"):
        target = folder / "locale" / source.stem / "LC_MESSAGES"
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["msgfmt", "--check", f"--output-file={target / DOMAIN}.mo", source], check=True)


def names(release: str) -> list[str]:
    """Every file that :func:`build` makes, below its folder."""
    found = [path.name for folder in ("shared", f"shell{release}") for path in (HERE / folder).glob("*.js")]
    found += [f"{kind}/{path.name}" for kind in ("icons", "schemas") for path in (HERE / kind).iterdir()]
    found += [f"locale/{path.stem}/LC_MESSAGES/{DOMAIN}.mo" for path in (HERE / "po").glob("*.po")]
    return sorted([*found, "metadata.json", "stylesheet.css", "schemas/gschemas.compiled"])


def version() -> str:
    found = re.search(r'__version__ = "(.+)"', (HERE.parents[1] / "gpud" / "__init__.py").read_text())
    assert found is not None
    return found[1]


def without_modules(text: str, name: str) -> str:
    """The same module as GNOME Shell 43 and its own files load it."""
    text = IMPORT.sub(lambda found: f"const {binding(found['what'])} = {place(found['where'], name)};", text)
    for pattern, replacement in EXPORTS:
        text = pattern.sub(replacement, text)
    if left := LEFT.search(text):
        sys.exit(f"cannot translate {name} for GNOME Shell 43: {left[0].strip()!r} is no import or export known here")
    return text


def binding(what: str) -> str:
    return what.removeprefix("* as ").replace(" as ", ": ")


def place(where: str, name: str) -> str:
    if library := re.fullmatch(r"gi://(\w+)", where):
        return f"imports.gi.{library[1]}"
    if own := re.fullmatch(r"\./(\w+)\.js", where):
        return f"imports.misc.extensionUtils.getCurrentExtension().imports.{own[1]}"
    if shells := re.fullmatch(r"resource:///org/gnome/shell/((?:\w+/)+\w+)\.js", where):
        return "imports." + shells[1].replace("/", ".")
    sys.exit(f"cannot translate {name} for GNOME Shell 43: what is {where!r} there?")


if __name__ == "__main__":
    main(sys.argv[1:])
