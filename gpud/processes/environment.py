"""Decides what of the daemon's environment an engine sees; it never reads the environment by itself.

What is not known to be harmless is left out: systemd's own variables (an engine would answer in the daemon's place),
the many generic names that engines take for options (``MODEL``, ``HOST``, ``PORT``), proxies, Python's and the loader's
switches, and secrets.
"""

from collections.abc import Mapping

KEPT = frozenset(
    {
        "HF_HOME",
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR",
    }
)
"""Who and where one is, and where caches and certificates lie."""

SECRETS = ("KEY", "TOKEN", "SECRET", "PASS", "CREDENTIAL")
"""Whose names say so stay here, whatever they begin with: NVIDIA_API_KEY opens an account, not a GPU."""

KEPT_PREFIXES = ("AMD_", "CUDA_", "HIP_", "HSA_", "LC_", "NVIDIA_", "ROCR_", "VK_", "ZE_")
"""The locale, and what the administrator said to the GPU's driver."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def child_environment(own: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """What is kept of the daemon's own environment, with what the command wants laid over it."""
    kept = {
        name: value
        for name, value in own.items()
        if name in KEPT or (name.startswith(KEPT_PREFIXES) and not any(word in name for word in SECRETS))
    }
    kept.setdefault("PATH", DEFAULT_PATH)
    kept.update(wanted)
    return kept
