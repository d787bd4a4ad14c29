"""The transition table by itself."""

from pathlib import Path

import pytest

from gpud.core.facts import State
from gpud.core.lifecycle import TRANSITIONS, IllegalTransition, Trigger, next_state


def test_what_surfaces_call_a_state() -> None:
    """As people do: what is on its way out is unloading, and what waits to be tried again has failed."""
    assert {str(state): state.word() for state in State} == {
        "cold": "unloaded",
        "loading": "loading",
        "ready": "ready",
        "draining": "unloading",
        "stopping": "unloading",
        "killing": "unloading",
        "backoff": "failed",
        "failed": "failed",
    }


def test_every_state_can_be_reached_from_cold() -> None:
    """No state is there that nothing leads to."""
    reached = {State.COLD}
    for _ in State:
        reached |= {new for (old, _), new in TRANSITIONS.items() if old in reached}

    assert reached == set(State)


def test_every_state_can_become_cold_again() -> None:
    """No state is a dead end."""
    home = {State.COLD}
    for _ in State:
        home |= {old for (old, _), new in TRANSITIONS.items() if new in home}

    assert home == set(State)


def test_every_state_with_an_engine_handles_its_end() -> None:
    """Whatever an engine is doing, it may end at any moment."""
    ends = {Trigger.GONE, Trigger.CRASH, Trigger.GIVE_UP}
    for state in State:
        if state.has_engine():
            assert ends & {trigger for (old, trigger) in TRANSITIONS if old is state}, state


def test_an_illegal_transition_names_both() -> None:
    """A bug of the scheduler says what it tried."""
    with pytest.raises(IllegalTransition, match="cold instance cannot take drain"):
        next_state(State.COLD, Trigger.DRAIN)


def test_the_table_of_the_documentation_is_this_one() -> None:
    """Every transition, and no other."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "ARCHITECTURE.md").read_text()
    shown = [line for line in page.splitlines() if line.startswith(tuple(f"| `{state}` | " for state in State))]
    leads = {
        state: [f"{trigger} → {new}" for (old, trigger), new in TRANSITIONS.items() if old is state] for state in State
    }
    assert shown == [f"| `{state}` | {', '.join(leads[state])} |" for state in State]
