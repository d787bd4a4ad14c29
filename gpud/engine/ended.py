"""Why a job did not come to what it was for, as an error of ours. One place, so that every door says the same."""

from gpud.core.errors import BackendFailed, Canceled, GpudError, WaitedTooLong
from gpud.core.events import JobEnded
from gpud.core.facts import JobResult


def problem_of(ended: JobEnded) -> GpudError | None:
    """None where it was done. What somebody else called off is no failure of the engine's: it may be asked again."""
    if ended.result is JobResult.DONE:
        return None
    if ended.error is not None:
        return ended.error
    if ended.result is JobResult.TIMEOUT:
        return WaitedTooLong(ended.message)
    if ended.result in (JobResult.CANCELED, JobResult.SUPERSEDED):
        return Canceled(ended.message, hint="somebody else canceled or overtook it; ask again")
    return BackendFailed(ended.message)
