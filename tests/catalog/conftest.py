"""The real engine that tests/provision makes: what the reader says is compared with what it says."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PROVISION = Path(__file__).parent.parent / "provision"


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of llama.cpp's programs and libraries."""
    made = subprocess.run([PROVISION, "llama-server"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.fail(f"tests/provision llama-server: {made.stderr}")
    return Path(made.stdout.strip()) / "site"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
