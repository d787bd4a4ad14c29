"""A program that looks at the GPUs with gpud's probe and NVIDIA's bindings, and is asked over a pipe."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


class Program:
    """Started by the first question. ``root`` is where it looks for /sys and /proc."""

    def __init__(self, root: Path, environment: Mapping[str, str], *, answer_s: float = 5.0) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("nvml_child.py")), str(root), str(answer_s)]
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def ask(self, name: str, *arguments: object) -> Any:
        """What a method of nvml_child.py answers."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | self._environment | {"PYTHONPATH": str(REPOSITORY)},
                text=True,
            )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the program that looks at the GPUs has ended"
        return json.loads(answer)

    def sample(self, *, wake: bool = True) -> list[dict[str, Any]]:
        """The GPUs' samples, without the host's, which must be last."""
        *samples, host = self.ask("sample", wake)
        assert host["uuid"] == "host"
        return samples

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def held(sample: dict[str, Any]) -> dict[int, int | None]:
    """What each process holds of it."""
    return {process["pid"]: process["used_bytes"] for process in sample["processes"]}
