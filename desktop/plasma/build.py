"""Makes the folder of the Plasma widget, ready to be put where Plasma looks for widgets.

    desktop/plasma/build.py FOLDER
    desktop/plasma/build.py --list      says what will be in it

What is added to the package: the version, and the translations in the form that Plasma loads.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIDGET = "org.kernelcore.gpud"
DOMAIN = f"plasma_applet_{WIDGET}"


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit("usage: desktop/plasma/build.py FOLDER|--list")
    if arguments[0] == "--list":
        sys.stdout.write("".join(f"{name}\n" for name in contents()))
        return
    if not shutil.which("msgfmt"):
        sys.exit("cannot build the Plasma widget: msgfmt is missing; apt-get install gettext")
    build(Path(arguments[0]))


def build(folder: Path) -> None:
    shutil.copytree(HERE / "package", folder, dirs_exist_ok=True)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["KPlugin"]["Version"] = version()
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n")
    for source in sorted((HERE / "po").glob("*.po")):
        target = folder / translation(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["msgfmt", f"--output-file={target}", source], check=True)


def contents() -> list[str]:
    found = [str(file.relative_to(HERE / "package")) for file in (HERE / "package").rglob("*") if file.is_file()]
    return sorted(found + [str(translation(source)) for source in (HERE / "po").glob("*.po")])


def translation(source: Path) -> Path:
    return Path("contents", "locale", source.stem, "LC_MESSAGES", f"{DOMAIN}.mo")


def version() -> str:
    found = re.search(r'__version__ = "(.+)"', (HERE.parents[1] / "gpud" / "__init__.py").read_text())
    assert found is not None
    return found[1]


if __name__ == "__main__":
    main(sys.argv[1:])
