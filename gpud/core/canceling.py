"""Somebody calls off a load or an unload: what was begun for nobody else ends."""

from gpud.core.errors import NoSuchJob
from gpud.core.facts import JobResult, State
from gpud.core.instance import Instance, Job
from gpud.core.leaving import Leaving
from gpud.core.table import Table


class Canceling:
    """Takes jobs from those who work on them."""

    def __init__(self, table: Table, leaving: Leaving) -> None:
        self._table = table
        self._leaving = leaving

    def asked(self, job_id: int) -> None:
        found: Job | None = None
        for instance in self._table.instances.values():
            for jobs, not_wanted in (
                (instance.load_jobs, self._load_not_wanted),
                (instance.unload_jobs, self._unload_not_wanted),
            ):
                job = next((job for job in jobs if job.id == job_id), None)
                if job is None:
                    continue
                jobs.remove(job)
                if found is None:
                    self._table.out.end_job(job, JobResult.CANCELED, "canceled")
                found = job
                if not jobs:
                    not_wanted(instance)
        if found is None:
            raise NoSuchJob(f"there is no job {job_id}", hint="it may have ended already")

    def _load_not_wanted(self, instance: Instance) -> None:
        if instance.wanted:
            return
        if instance.waiting:
            instance.leave_queue()
            # What was kept for it is for those behind it.
            self._table.look = True
        elif instance.state is State.LOADING:
            self._leaving.cancel_launch(instance, "user", "nobody waits for it any longer")

    def _unload_not_wanted(self, instance: Instance) -> None:
        if instance.state is State.DRAINING and instance.draining_for == "user":
            self._leaving.resume(instance)
