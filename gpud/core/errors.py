"""What can go wrong, as a user meets it.

Every error carries a stable kebab-case ``code`` (each edge maps it in one table: D-Bus name, HTTP status, exit
status), a
sentence that says what happened to what with the number and its limit, and a ``hint`` that says what to do next.

    GpudError
    ├── NoSuchModel             the name is not configured; names the nearest ones
    ├── NoSuchJob
    ├── NoSuchHold
    ├── NoSession               the caller belongs to no login session
    ├── NotLoaded
    ├── Busy                    somebody else holds or uses the model
    ├── NoSuchClaim
    ├── BudgetExceeded          need and available, in bytes
    ├── QueueFull               too many wait for memory already
    ├── WaitedTooLong           its turn did not come in time
    ├── Yielded                 the GPUs are given away until somebody resumes
    ├── GpuTaken                other programs hold so much of the GPU that nothing is loaded on it
    ├── GpuUnavailable          the driver does not answer, or a GPU that the model names is not there
    ├── BackendFailed           an engine could not be started, or ended by itself
    ├── InvalidOption           an option that the caller gave is unknown, or has a wrong value
    ├── InvalidArguments
    ├── LimitsExceeded          one caller asks for too much
    ├── AccessDenied
    ├── InteractionRequired     polkit would allow it after asking the user, and the caller did not permit that
    ├── Suspending              the machine is going to sleep
    ├── ShuttingDown            gpud is stopping
    ├── ConfigInvalid           every problem of a configuration at once
    └── Canceled
"""

from collections.abc import Sequence


class GpudError(Exception):
    """The root. ``str()`` is the sentence; the hint stands apart so that each surface can place it."""

    code = "failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def text(self) -> str:
        """The sentence and the hint as one line, for surfaces that have only one."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class NoSuchModel(GpudError):
    code = "no-such-model"


class NoSuchJob(GpudError):
    code = "no-such-job"


class NoSuchHold(GpudError):
    code = "no-such-hold"


class NoSession(GpudError):
    code = "no-session"


class NotLoaded(GpudError):
    code = "not-loaded"


class Busy(GpudError):
    code = "busy"


class BudgetExceeded(GpudError):
    code = "budget-exceeded"

    def __init__(self, message: str, *, need_bytes: int, available_bytes: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.need_bytes = need_bytes
        self.available_bytes = available_bytes


class NoSuchClaim(GpudError):
    code = "no-such-claim"


class QueueFull(GpudError):
    """``retry_after_s`` is a guess at when it is worth asking again."""

    code = "queue-full"

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float = 5.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class WaitedTooLong(GpudError):
    code = "waited-too-long"


class Yielded(GpudError):
    code = "yielded"


class GpuTaken(GpudError):
    code = "gpu-taken"


class GpuUnavailable(GpudError):
    code = "gpu-unavailable"


class BackendFailed(GpudError):
    """An engine could not be started or ended by itself; ``tail`` are its last lines of output.

    ``preflight`` says that no process was started (a missing file, a missing binary): trying again costs nothing.
    """

    code = "backend-failed"

    def __init__(
        self, message: str, *, hint: str = "", kind: str = "", tail: Sequence[str] = (), preflight: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.tail = tuple(tail)
        self.preflight = preflight


class InvalidOption(GpudError):
    code = "invalid-option"


class InvalidArguments(GpudError):
    code = "invalid-arguments"


class LimitsExceeded(GpudError):
    code = "limits-exceeded"


class AccessDenied(GpudError):
    code = "access-denied"


class InteractionRequired(GpudError):
    code = "interaction-required"


class Suspending(GpudError):
    code = "suspending"


class ShuttingDown(GpudError):
    code = "shutting-down"


class Canceled(GpudError):
    code = "canceled"


class ConfigInvalid(GpudError):
    """A configuration that cannot be used; ``problems`` holds one sentence for each thing that is wrong with it."""

    code = "config-invalid"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
