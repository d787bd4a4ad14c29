"""The real engines that tests/provision makes, and the model that all of them load."""

import subprocess
from pathlib import Path

import pytest
import tiny_model

PROVISION = Path(__file__).parent.parent / "provision"


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of llama-cpp-python and of llama-server."""
    made = subprocess.run([PROVISION, "llama-server"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.fail(f"tests/provision llama-server: {made.stderr}")
    return Path(made.stdout.strip()) / "site"


@pytest.fixture(scope="session")
def llama_server(site: Path) -> str:
    return str(site / "bin/llama-server")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of half a megabyte that every engine loads."""
    return str(tiny_model.write(tmp_path_factory.mktemp("models") / "tiny.gguf"))
