"""What an engine sees of the daemon's environment."""

import pytest

from gpud.processes.environment import child_environment

DROPPED = [
    "LLAMA_API_KEY",
    "LLAMA_ARG_MODEL",
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    "http_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "MAINPID",
    "MANAGERPID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "FDSTORE",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "OLLAMA_HOST",
    "OLLAMA_MODELS",
    "MODEL",
    "HOST",
    "PORT",
    "N_CTX",
    "API_KEY",
    "CONFIG_FILE",
    "LD_PRELOAD",
    "LD_AUDIT",
    "HF_TOKEN",
    "NVIDIA_API_KEY",
    "AMD_CLOUD_SECRET",
    "DBUS_SESSION_BUS_ADDRESS",
    "GPUD_FDSTORE",
    "BASH_ENV",
]
KEPT = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_NUMERIC",
    "TZ",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "VK_ICD_FILENAMES",
    "HSA_OVERRIDE_GFX_VERSION",
]


@pytest.mark.parametrize("name", DROPPED)
def test_dangerous_variable_does_not_reach_an_engine(name: str) -> None:
    """It would change what the engine does, or let it speak for the daemon, or it is a secret."""
    assert name not in child_environment({name: "x"}, {})


@pytest.mark.parametrize("name", KEPT)
def test_harmless_variable_reaches_an_engine(name: str) -> None:
    """Locale, paths and the GPU's own switches stay."""
    assert child_environment({name: "x"}, {})[name] == "x"


def test_what_the_command_wants_is_laid_over() -> None:
    """A command's own variables win, whatever their names are."""
    made = child_environment({"PATH": "/bin", "LLAMA_API_KEY": "old"}, {"PATH": "/opt", "LLAMA_API_KEY": "new"})
    assert made == {"PATH": "/opt", "LLAMA_API_KEY": "new"}


def test_there_is_always_a_path() -> None:
    """A daemon started without PATH still finds programs."""
    assert "/usr/bin" in child_environment({}, {})["PATH"].split(":")
