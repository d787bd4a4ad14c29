"""A machine with NVIDIA GPUs for a test of the whole daemon: what they have, who holds it, and what goes wrong.

The daemon and everything it starts are real; only the library that tells of the GPUs is the stand-in. A llama-server
that was built for the CPU is a GPU's process here: a rule says what it holds from its start to its end.

    from fake_nvml.gpu import GIB, FakeGpus

    def test_a_model_waits_for_a_game(place: Place) -> None:
        model = tiny(place.root / "tiny.gguf")
        with FakeGpus(place.root / "gpus", 6 * GIB) as gpus:
            place.environment |= gpus.environment()
            gpus.rule(str(model), 3 * GIB)                      # each process with this path in its command line
            gpus.set_foreign(2 * GIB, name="game")              # a process of that name, which is really there
            place.configure(
                {"tiny": {"engine": "llama_server", "file": str(model), "size": "3GiB"}},
                engines={"llama_server": {"binary": llama_server}},
            )
            daemon = place.start()
            daemon.load("tiny")
            gpus.set_foreign(4 * GIB, name="game")              # it grows; then it goes
            gpus.end_foreign("game")
            gpus.late(200)                                      # what ends gives its memory back 200 ms later
            gpus.lose(0)                                        # as after Xid 79
            gpus.find(0)
            assert gpus.overflows() == []                       # nobody ever held more than there is
            assert daemon.stop() == 0                           # before the machine goes

Everything holds from the daemon's next look on: each change is one file, replaced in one step. Sizes are bytes.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fake_nvml
from fake_nvml import FakeGpu, FakeRule

MIB = 1 << 20
GIB = 1 << 30
UNSUPPORTED = {"nvmlDeviceGetMemoryInfo": "NOT_SUPPORTED", "nvmlDeviceGetMemoryInfo_v2": "NOT_SUPPORTED"}
FOR_EVER = -1


class FakeGpus:
    """The GPUs of one test, numbered from 0. ``directory`` is made, and is this object's alone.

    Close it (or use ``with``) when the daemon has ended: programs that :meth:`set_foreign` started are ended then.
    """

    def __init__(self, directory: Path, *totals: int) -> None:
        """One GPU for each total; without any, one of 6 GiB. They are called ``GPU-fake-0``, ``GPU-fake-1``, …"""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._config = directory / "nvml.conf"
        self._claims = directory / "claims"
        self._programs = directory / "programs"
        self._gpus = [
            FakeGpu(
                uuid=self.uuid(index),
                name=f"NVIDIA Fake {index}",
                pci=f"0000:{index + 1:02x}:00.0",
                total_bytes=total_bytes,
            )
            for index, total_bytes in enumerate(totals or (6 * GIB,))
        ]
        self._rules: list[FakeRule] = []
        self._linger_ms = 0
        self._driver = "580.65.06"
        self._errors: dict[str, str] = {}
        self._foreign: dict[int, dict[int, int]] = {}
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._write()

    def environment(self) -> dict[str, str]:
        """What the daemon's environment must say beside its own: ``place.environment |= gpus.environment()``."""
        return fake_nvml.environment(self._config)

    @staticmethod
    def uuid(index: int = 0) -> str:
        return f"GPU-fake-{index}"

    # What there is.

    def set_total(self, total_bytes: int | None, *, gpu: int = 0) -> None:
        """None: the GPU has no memory of its own and works in the machine's, as GB10 does."""
        errors = dict(self._gpus[gpu].errors)
        if total_bytes is None:
            self.change(gpu, errors=errors | UNSUPPORTED)
        else:
            left = {name: error for name, error in errors.items() if name not in UNSUPPORTED}
            self.change(gpu, total_bytes=total_bytes, errors=left)

    def change(self, gpu: int, **fields: Any) -> None:
        """Anything that :class:`fake_nvml.FakeGpu` has, by name."""
        self._gpus[gpu] = replace(self._gpus[gpu], **fields)
        self._write()

    # Who holds it.

    def set_foreign(self, held_bytes: int, *, gpu: int = 0, name: str = "game", pid: int = 0) -> int:
        """From now on another program holds so much of the GPU; returns its PID.

        Without ``pid`` it is a process of that name, which is started the first time and does nothing. With ``pid`` it
        is a process of the test's own; ``name`` says nothing then.
        """
        if not pid:
            pid = self._program(name)
        self._foreign.setdefault(pid, {})[gpu] = held_bytes
        sizes = [f"{self._foreign[pid].get(index, 0)}B" for index in range(len(self._gpus))]
        fake_nvml.claim(self._claims, pid, *sizes)
        return pid

    def end_foreign(self, name: str = "game") -> None:
        """kill -9 of a program that :meth:`set_foreign` started."""
        process = self._started.pop(name)
        process.kill()
        process.wait()
        self._foreign.pop(process.pid, None)
        (self._claims / str(process.pid)).unlink(missing_ok=True)

    def rule(
        self, cmdline_part: str, *held_bytes: int, first_bytes: int | tuple[int, ...] = 0, after_ms: int = 0
    ) -> None:
        """Every process whose command line contains the words holds so much from its start to its end.

        Use what no other test's process has in it: the path of this test's model. It holds memory of the first GPU that
        it sees by its CUDA_VISIBLE_DEVICES, and none where it sees none; a second figure is for the second one that it
        sees. Until it is ``after_ms`` old it holds ``first_bytes``. A rule for the same words replaces the earlier one,
        for processes that live already too. A short look of gpud at the model (a probe) is such a process as well:
        ``after_ms`` lets it pass.
        """
        first = (first_bytes,) if isinstance(first_bytes, int) else first_bytes
        self._rules = [rule for rule in self._rules if rule.part != cmdline_part]
        self._rules.append(FakeRule(cmdline_part, held_bytes, first, after_ms))
        self._write()

    def late(self, ms: int) -> None:
        """What a process held comes back so long after its end was first seen; ``FOR_EVER``: never; 0: at once.

        Say it before the process ends. Only what a look has seen alive leaves memory behind.
        """
        self._linger_ms = ms
        self._write()

    # What goes wrong.

    def lose(self, index: int = 0, error: str = "GPU_IS_LOST") -> None:
        """Whatever is asked of the GPU gives this error (RESET_REQUIRED, UNKNOWN, …; ``hang``: no answer at all)."""
        self.change(index, errors=dict(self._gpus[index].errors) | {"": error})

    def find(self, index: int = 0) -> None:
        """It is back, well, and as empty as its processes are gone."""
        errors = {name: error for name, error in self._gpus[index].errors.items() if name}
        self.change(index, errors=errors, recovery=0)

    def xid(self, number: int, *, gpu: int = 0, recovery: int = 0) -> None:
        """The driver tells of an Xid, once, and from now on that the GPU needs ``recovery`` (0 nothing, 1 a reset, 2 a
        reboot)."""
        self.change(gpu, xids=(*self._gpus[gpu].xids, number), recovery=recovery)

    def fail(self, function: str, error: str, *, gpu: int) -> None:
        """One function of NVML gives an error for one GPU; an empty error: it works again."""
        errors = dict(self._gpus[gpu].errors) | {function: error}
        self.change(gpu, errors={name: value for name, value in errors.items() if value})

    def fail_all(self, function: str, error: str) -> None:
        """The same for all GPUs, and for what concerns none (nvmlInitWithFlags, nvmlShutdown, …)."""
        self._errors = {name: value for name, value in (self._errors | {function: error}).items() if value}
        self._write()

    # What was seen.

    def calls(self) -> list[str]:
        """Every call of NVML that the daemon made, oldest first."""
        return fake_nvml.calls(self._directory / "calls")

    def overflows(self) -> list[str]:
        """One line for each look that found more held than there is: on a real GPU a process would have failed."""
        return fake_nvml.calls(self._directory / "overflows")

    # Its end.

    def close(self) -> None:
        for name in list(self._started):
            self.end_foreign(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _program(self, name: str) -> int:
        """A process whose name this is: the kernel names one after the file that was executed."""
        if name not in self._started:
            self._programs.mkdir(exist_ok=True)
            sleep = shutil.which("sleep")
            assert sleep is not None
            with contextlib.suppress(FileExistsError):
                (self._programs / name).symlink_to(sleep)
            # Without the test's environment: a place of the daemon counts what carries its directory there.
            self._started[name] = subprocess.Popen([self._programs / name, "infinity"], env=_PLAIN)
            # The kernel gives it the name an instant after it lets its parent go on.
            while Path(f"/proc/{self._started[name].pid}/comm").read_text().rstrip("\n") != name[:15]:
                pass
        return self._started[name].pid

    def _write(self) -> None:
        fake_nvml.write_config(
            self._config,
            self._gpus,
            driver=self._driver,
            claims=self._claims,
            call_log=self._directory / "calls",
            overflow=self._directory / "overflows",
            rules=self._rules,
            linger_ms=self._linger_ms,
            errors=self._errors,
        )


_PLAIN: Mapping[str, str] = {"PATH": "/usr/bin:/bin"}
