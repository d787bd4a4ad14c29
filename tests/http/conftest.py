"""The real llama-server that tests/provision makes, and the small model that it loads."""

import subprocess
from pathlib import Path

import pytest
import tiny_model

PROVISION = Path(__file__).parents[1] / "provision"


@pytest.fixture(scope="session")
def llama_server() -> str:
    made = subprocess.run([PROVISION, "llama-server"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.fail(f"tests/provision llama-server: {made.stderr}")
    return str(Path(made.stdout.strip()) / "site/bin/llama-server")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of half a megabyte."""
    return str(tiny_model.write(tmp_path_factory.mktemp("models") / "tiny.gguf"))
