"""Who has used what: when a session ends, what it held is held no longer, and what nobody else has used goes after it.

Knows sessions by their names alone; how they are found and watched is others' business.
"""

from collections.abc import Iterator, Mapping

from gpud.core import events
from gpud.core.events import Kind, Notice
from gpud.core.facts import JobResult, Session, SessionStatus, State
from gpud.core.instance import Instance
from gpud.core.leaving import Leaving
from gpud.core.spans import span
from gpud.core.table import Table


class Sessions:
    """The rule: a model goes with the last session that used it, if nobody used it who is in no session.

    It goes as an idle one does: not while it answers, not while somebody holds it, never when it is pinned, and not if
    somebody uses it again before the grace is over.
    """

    def __init__(self, table: Table, leaving: Leaving) -> None:
        self._table = table
        self._leaving = leaving
        self._out = table.out

    def began(self, session: Session) -> None:
        self._table.sessions[session.id] = (session, self._table.now)
        self._out.add(events.SessionsChanged())

    def restored(self, users: Mapping[str, frozenset[str]]) -> None:
        """What an earlier daemon knew of those whose engines were taken over; of others it is too late."""
        for name, known in users.items():
            instance = self._table.instances.get(name)
            if instance is not None and instance.state.has_engine() and known:
                instance.users = {user if user in self._table.sessions else "" for user in known}
        if users:
            self._out.add(events.SessionsChanged())

    def ended(self, session_id: str, reason: str) -> Session | None:
        """Returns which it was, or None when there is none. Its holds are the caller's to drop."""
        session, _ = self._table.sessions.pop(session_id, (None, 0.0))
        if session is None:
            return None
        left = list(self._left_by(session_id))
        limits = self._table.limits.sessions
        if left and limits.unload_on_exit:
            for instance in left:
                instance.leave_at_s = self._table.now + limits.grace_s
            names = ", ".join(f'"{instance.model.name}"' for instance in left)
            fields: dict[str, str | int | float] = {"session": session.id, "uid": session.uid, "pid": session.pid}
            self._out.add(
                Notice(
                    Kind.SESSION_ENDED,
                    f"The session of {session.label} has ended ({reason}): nobody else has used {names}, "
                    + (f"to be unloaded in {span(limits.grace_s)}" if limits.grace_s else "to be unloaded now"),
                    model=left[0].model.name if len(left) == 1 else "",
                    fields=fields,
                )
            )
            self.time_passed()
        self._out.add(events.SessionsChanged())
        return session

    def _left_by(self, session_id: str) -> Iterator[Instance]:
        """Those that have no user any more, now that this one has gone."""
        for instance in self._table.instances.values():
            if session_id in instance.users:
                instance.users.discard(session_id)
                there = instance.waiting or instance.state not in (State.COLD, State.FAILED)
                if there and not instance.users and not instance.model.pinned:
                    yield instance

    def time_passed(self) -> None:
        """What is ready goes as idle models go. What is not there yet is no longer loaded: nobody waits for it."""
        for instance in self._leaving_soon():
            if instance.is_left(self._table.now):
                self._not_wanted(instance)

    def _not_wanted(self, instance: Instance) -> None:
        text = "whoever asked for it has left"
        instance.wanted = False
        if instance.waiting:
            instance.leave_queue()
            self._table.look = True
        self._out.end_load_jobs(instance, JobResult.CANCELED, text)
        instance.leave_at_s = None
        self._out.touch()
        if instance.state is State.LOADING:
            self._leaving.cancel_launch(instance, "session", text)

    def _leaving_soon(self) -> list[Instance]:
        """Those that are to go and are not there yet."""
        return [
            instance
            for instance in self._of_interest()
            if instance.leave_at_s is not None
            and (instance.waiting or instance.state in (State.LOADING, State.BACKOFF))
        ]

    def deadlines(self) -> list[float]:
        """Of those that are not there yet; when one that is ready goes is known with the idle ones."""
        return [instance.leave_at_s for instance in self._leaving_soon() if instance.leave_at_s is not None]

    def statuses(self) -> tuple[SessionStatus, ...]:
        users = self.users()
        return tuple(
            SessionStatus(
                session,
                since_s,
                used=tuple(sorted(name for name, known in users.items() if session.id in known)),
                alone=tuple(sorted(name for name, known in users.items() if known == {session.id})),
            )
            for session, since_s in self._table.sessions.values()
        )

    def users(self) -> dict[str, frozenset[str]]:
        return {instance.model.name: frozenset(instance.users) for instance in self._of_interest() if instance.users}

    def _of_interest(self) -> list[Instance]:
        """Of very many models the few that are there, on their way, or waited for."""
        waiting = [entry for entry in self._table.waiting() if isinstance(entry, Instance)]
        return list({entry.model.name: entry for entry in (*self._table.lively(), *waiting)}.values())
