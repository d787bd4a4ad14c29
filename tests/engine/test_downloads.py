"""Downloads as jobs: seen by everybody, ended by their owner, a canceler, or the end of their process."""

from collections.abc import Callable
from typing import Any

import pytest

from gpud.core.errors import NoSuchJob
from gpud.core.events import JobEnded, Outcome, Touched
from gpud.core.facts import Caller, JobKind, JobResult, Model

from .parts import GIB, Bench

Run = Callable[..., Any]
ALICE = Caller("alice", 1000, label="alice")
ALICE_ELSEWHERE = Caller("alice-2", 1000, label="alice")
BOB = Caller("bob", 1001, label="bob")
A = Model("a", "fake")
WHAT = "hf:org/repo/model-q4_k_m.gguf"


def test_a_download_is_a_job_that_moves(run: Run) -> None:
    """The snapshot has what is downloaded, for whom, and how far it is; loads take their numbers from the same row."""

    async def work() -> None:
        async with Bench(A) as bench:
            engine = bench.engine
            job = engine.begin_download(ALICE, WHAT, 4 * GIB)
            (status,) = engine.snapshot().jobs
            assert (status.id, status.kind, status.model) == (job, JobKind.DOWNLOAD, WHAT)
            assert (status.caller, status.stage, status.progress) == (ALICE, "downloading", 0.0)

            engine.download_progress(job, ALICE, GIB, 4 * GIB)
            (status,) = engine.snapshot().jobs
            assert (status.progress, status.done_bytes, status.total_bytes) == (0.25, GIB, 4 * GIB)
            assert engine.job(job) == status
            assert engine.load("a", ALICE) == job + 1
            await engine.wait(job + 1)

    run(work())


def test_what_is_not_known_is_not_shown(run: Run) -> None:
    """A server that does not say how long a file is: there are bytes, and no share."""

    async def work() -> None:
        async with Bench(A) as bench:
            job = bench.engine.begin_download(ALICE, WHAT, None)
            bench.engine.download_progress(job, ALICE, GIB, None)
            (status,) = bench.engine.snapshot().jobs
            assert (status.progress, status.done_bytes, status.total_bytes) == (None, GIB, None)

    run(work())


def test_its_figures_and_its_end_are_told(run: Run) -> None:
    """Listeners hear of each change, and of the end once; whoever waits for the job is told the same."""

    async def work() -> None:
        async with Bench(A) as bench:
            engine = bench.engine
            told: list[Outcome] = []
            engine.subscribe(told.extend)
            job = engine.begin_download(ALICE, WHAT, 10)
            engine.download_progress(job, ALICE, 5, 10)
            assert told == [Touched(), Touched()]
            engine.end_download(job, ALICE, JobResult.DONE, "downloaded 10 bytes")
            ended = JobEnded(job, JobKind.DOWNLOAD, WHAT, JobResult.DONE, "downloaded 10 bytes", ALICE)
            assert told[2:] == [ended]
            assert await engine.wait(job) == ended
            assert engine.snapshot().jobs == ()

    run(work())


def test_its_user_can_cancel_it(run: Run) -> None:
    """From any process: it is over for everybody at once, and its process hears so at its next word."""

    async def work() -> None:
        async with Bench(A) as bench:
            engine = bench.engine
            job = engine.begin_download(ALICE, WHAT, 10)
            with pytest.raises(NoSuchJob):
                engine.cancel(job, BOB)
            engine.cancel(job, ALICE_ELSEWHERE)
            ended = await engine.wait(job)
            assert (ended.result, ended.message) == (JobResult.CANCELED, f'the download of "{WHAT}" was canceled')
            with pytest.raises(NoSuchJob, match="no download"):
                engine.download_progress(job, ALICE, 6, 10)
            with pytest.raises(NoSuchJob):
                engine.end_download(job, ALICE, JobResult.DONE, "")

    run(work())


def test_a_manager_can_cancel_it(run: Run) -> None:
    """Whoever may manage ends anybody's."""

    async def work() -> None:
        async with Bench(A) as bench:
            job = bench.engine.begin_download(ALICE, WHAT, 10)
            bench.engine.cancel(job, BOB, any_owner=True)
            assert (await bench.engine.wait(job)).result is JobResult.CANCELED

    run(work())


def test_only_its_process_moves_it(run: Run) -> None:
    """Another one, also of the same user, neither moves nor ends it."""

    async def work() -> None:
        async with Bench(A) as bench:
            engine = bench.engine
            job = engine.begin_download(ALICE, WHAT, 10)
            for stranger in (ALICE_ELSEWHERE, BOB):
                with pytest.raises(NoSuchJob):
                    engine.download_progress(job, stranger, 9, 10)
                with pytest.raises(NoSuchJob):
                    engine.end_download(job, stranger, JobResult.DONE, "")
            (status,) = engine.snapshot().jobs
            assert status.done_bytes == 0

    run(work())


def test_it_fails_with_its_process(run: Run) -> None:
    """Nothing is left to ask: what its owner had under way is over, and nobody else's."""

    async def work() -> None:
        async with Bench(A) as bench:
            engine = bench.engine
            gone, stays = engine.begin_download(ALICE, WHAT, 10), engine.begin_download(ALICE_ELSEWHERE, WHAT, 10)
            engine.release_owner(ALICE.owner)
            ended = await engine.wait(gone)
            assert ended.result is JobResult.FAILED
            assert ended.message == f'the download of "{WHAT}" has failed: its process has gone'
            assert [status.id for status in engine.snapshot().jobs] == [stays]

    run(work())
