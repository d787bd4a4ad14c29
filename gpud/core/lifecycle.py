"""The states of a model's instance and the one table of its transitions.

An illegal transition raises: it is a bug of the scheduler, never a user's mistake. The table in docs/ARCHITECTURE.md is
held to this one by a test.
"""

from enum import StrEnum

from gpud.core.facts import State


class Trigger(StrEnum):
    """What moves an instance from one state to another."""

    LAUNCH = "launch"
    READY = "ready"
    ADOPT = "adopt"
    CANCEL = "cancel"
    CRASH = "crash"
    GIVE_UP = "give-up"
    DRAIN = "drain"
    RESUME = "resume"
    DRAINED = "drained"
    GRACE_OVER = "grace-over"
    GONE = "gone"
    FORGIVEN = "forgiven"


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.COLD, Trigger.LAUNCH): State.LOADING,
    (State.COLD, Trigger.ADOPT): State.READY,
    (State.COLD, Trigger.GIVE_UP): State.FAILED,
    (State.LOADING, Trigger.READY): State.READY,
    (State.LOADING, Trigger.CANCEL): State.STOPPING,
    (State.LOADING, Trigger.CRASH): State.BACKOFF,
    (State.LOADING, Trigger.GIVE_UP): State.FAILED,
    (State.READY, Trigger.DRAIN): State.DRAINING,
    (State.READY, Trigger.GONE): State.COLD,
    (State.READY, Trigger.CRASH): State.BACKOFF,
    (State.READY, Trigger.GIVE_UP): State.FAILED,
    (State.DRAINING, Trigger.RESUME): State.READY,
    (State.DRAINING, Trigger.DRAINED): State.STOPPING,
    (State.DRAINING, Trigger.GONE): State.COLD,
    (State.STOPPING, Trigger.GRACE_OVER): State.KILLING,
    (State.STOPPING, Trigger.GONE): State.COLD,
    (State.KILLING, Trigger.GONE): State.COLD,
    (State.BACKOFF, Trigger.LAUNCH): State.LOADING,
    (State.BACKOFF, Trigger.FORGIVEN): State.COLD,
    (State.BACKOFF, Trigger.GIVE_UP): State.FAILED,
    (State.FAILED, Trigger.LAUNCH): State.LOADING,
    (State.FAILED, Trigger.FORGIVEN): State.COLD,
}


class IllegalTransition(AssertionError):
    """The scheduler asked for a transition that the table does not have."""


def next_state(state: State, trigger: Trigger) -> State:
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransition(f"internal error: a {state} instance cannot take {trigger!s}") from None
