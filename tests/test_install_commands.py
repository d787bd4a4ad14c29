"""What ``tools/install`` puts among the programs of a machine that has its own already."""

import os
import re
import subprocess
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
COMMANDS = sorted(path.name for path in (TOP / "shell" / "bin").iterdir())


def listed(destination: Path) -> list[tuple[str, str]]:
    """Source and place of every file that would be installed there."""
    done = subprocess.run(
        [str(TOP / "tools" / "install"), "files"],
        env={**os.environ, "DESTDIR": str(destination), "GNOME": "no", "PLASMA": "no"},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        timeout=60,
    )
    return [(line.split()[0], line.split()[1]) for line in done.stdout.splitlines()]


def commands_of(destination: Path) -> set[str]:
    return {Path(place).name for source, place in listed(destination) if source.startswith("shell/bin/")}


def test_every_command_and_hook_is_installed(tmp_path: Path) -> None:
    """Programs in /usr/bin, what they share in /usr/lib, the hooks where shells look for them."""
    files = dict(reversed(pair) for pair in listed(tmp_path))
    assert commands_of(tmp_path) == set(COMMANDS)
    assert all(files[f"/usr/bin/{name}"] == f"shell/bin/{name}" for name in COMMANDS)
    assert files["/usr/lib/gpud/ask"] == "shell/lib/ask"
    assert files["/etc/profile.d/gpud-session.sh"] == "shell/hooks/gpud.sh"
    assert files["/usr/share/fish/vendor_conf.d/gpud.fish"] == "shell/hooks/gpud.fish"
    assert {f"/usr/share/gpud/hooks/gpud.{name}" for name in ("sh", "zsh", "fish")} <= set(files)


def test_the_pages_that_gpud_points_to_are_installed(tmp_path: Path) -> None:
    """With their pictures, beside each other as they lie in the source."""
    files = dict(reversed(pair) for pair in listed(tmp_path))
    said = "\n".join(path.read_text() for path in (TOP / "gpud").rglob("*.py"))
    pages = set(re.findall(r"/usr/share/doc/gpud/docs/[\w-]+\.md", said))
    assert pages
    assert pages <= set(files)
    for page in (TOP / "docs").glob("*.md"):
        assert files[f"/usr/share/doc/gpud/docs/{page.name}"] == f"docs/{page.name}"
        for picture in re.findall(r"\]\((images/[^)]+)\)", page.read_text()):
            assert f"/usr/share/doc/gpud/docs/{picture}" in files


def test_somebody_elses_program_stays(tmp_path: Path) -> None:
    """A link to nowhere is somebody's, too; what gpud had installed is replaced, and so is what is ours to the byte."""
    programs = tmp_path / "usr" / "bin"
    programs.mkdir(parents=True)
    (programs / "ollama-status").write_text("#!/bin/sh\n# mine\n")
    (programs / "ml-models").symlink_to("/nonexistent/ml-models")
    (programs / "gpu-mem").write_text("#!/bin/sh\n# of an older gpud\n")
    (programs / "gpu-temp").write_bytes((TOP / "shell" / "bin" / "gpu-temp").read_bytes())
    home = tmp_path / "opt" / "gpud"
    home.mkdir(parents=True)
    (home / "installed").write_text("/usr/bin/gpu-mem\n")
    assert commands_of(tmp_path) == set(COMMANDS) - {"ollama-status", "ml-models"}


def test_every_command_says_what_it_is() -> None:
    """The first words of each file are for whoever wonders what it is."""
    for name in COMMANDS:
        first, second, *_ = (TOP / "shell" / "bin" / name).read_text().splitlines()
        assert first == "#!/bin/sh", name
        assert (second.startswith("# ") and second.endswith((".", ":", ","))) or len(second) > 60, name


def test_every_command_is_explained() -> None:
    """docs/sessions.md has them all."""
    text = (TOP / "docs" / "sessions.md").read_text()
    assert [name for name in COMMANDS if f"`{name}`" not in text and f"`{name} [" not in text] == []
