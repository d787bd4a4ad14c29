"""``cd tests && ../.venv/bin/python -m core.stories`` writes what gpud does and says in each of these stories anew.

Other tests ask for one thing at a time; here nothing is left out: every action with all its fields, every notice with
its numbers, and what is shown afterwards. Read the difference: each line of it is seen by somebody.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path

from gpud.core import events
from gpud.core.errors import GpudError
from gpud.core.facts import (
    HOST,
    BudgetLimits,
    Caller,
    Exit,
    Limits,
    Model,
    Priority,
    QueueLimits,
    Session,
    session_owner,
)
from gpud.core.quote import ANY_GPU, Offer, Quote, Share, Source
from gpud.core.record import Struct

from .world import ALICE, BOB, CAROL, GIB, GPU, GPU1, MIB, Gpu, World, model

FILE = Path(__file__).with_name("stories.txt")
LIMITS = Limits(
    gpu=BudgetLimits(reserve_bytes=GIB // 2),
    host=BudgetLimits(),
    memory_wait_s=5.0,
    queue=QueueLimits(size=3, timeout_s=60.0, turn_s=5.0, aging_s=20.0),
    watch_s=100.0,
)

Story = Callable[[], World]
STORIES: dict[str, Story] = {}


def story(tell: Story) -> Story:
    STORIES[tell.__name__] = tell
    return tell


def world(*names: str, size: int = 3 * GIB, limits: Limits = LIMITS, **more: object) -> World:
    models = {name: model(name) for name in names}
    return World(models, dict.fromkeys(names, size), limits=limits, **more)  # type: ignore[arg-type]


def tried(w: World, name: str, **options: object) -> None:
    """A load that may be refused at once: what is said then is part of the story."""
    try:
        w.load(name, **options)  # type: ignore[arg-type]
    except GpudError as error:
        w.told.append(error)  # type: ignore[arg-type]


@story
def loaded_used_and_idle() -> World:
    w = world("a", load_s={"a": 4.0})
    w.load("a", use=True)
    w.pass_time(2)
    w.post(events.Progressed("a", 1, "reading weights", 0.5))
    w.pass_time(10)
    w.post(events.UseBegan("a"))
    w.post(events.UseEnded("a"))
    w.post(events.UseEnded("a"))
    w.busy = {"a"}
    w.pass_time(400)
    w.busy = set()
    w.pass_time(700)
    return w


@story
def one_makes_room_for_another() -> World:
    w = world("a", "b", "c")
    for name in ("a", "b", "c"):
        w.load(name)
        w.pass_time(30)
    return w


@story
def a_busy_one_is_waited_for() -> World:
    w = world("a", "b", size=5 * GIB)
    w.load("a", use=True)
    w.pass_time(1)
    w.load("b", BOB)
    w.pass_time(4)
    w.post(events.UseEnded("a"))
    w.pass_time(3)
    return w


@story
def who_has_waited_long_enough_has_its_turn() -> World:
    w = world("a", "b", size=5 * GIB)
    w.load("a", use=True)
    w.pass_time(1)
    w.load("b", BOB)
    w.pass_time(8)
    w.load("a", CAROL, use=True)
    w.post(events.UseEnded("a"))
    w.pass_time(3)
    return w


@story
def a_wait_that_is_too_long() -> World:
    w = world("a", "b", size=5 * GIB)
    w.load("a", use=True)
    w.pass_time(1)
    w.load("b", BOB, wait_s=2.0)
    w.load("b", CAROL)
    tried(w, "b", wait_s=0.0)
    w.pass_time(70)
    return w


@story
def what_cannot_fit_and_what_others_hold() -> World:
    w = world("a", "b", size=20 * GIB)
    tried(w, "a")
    w.settle()
    w.sizes["b"] = 5 * GIB
    w.gpus[GPU].programs = {"blender": 6 * GIB}
    tried(w, "b", evict=False)
    w.pass_time(1)
    return w


@story
def a_crash_and_what_comes_of_it() -> World:
    w = world(
        "a",
        limits=Limits(gpu=BudgetLimits(), host=BudgetLimits(), backoff_attempts=3, memory_wait_s=5.0, watch_s=100.0),
    )
    w.load("a", use=True)
    w.pass_time(1)
    w.end("a", code=-11)
    w.pass_time(70)
    w.broken = {"a"}
    w.end("a", code=1)
    w.pass_time(200)
    tried(w, "a")
    w.unload("a")
    w.broken = set()
    tried(w, "a")
    w.pass_time(100)
    return w


@story
def an_engine_that_ends_by_itself() -> World:
    w = world("a", "b")
    for name in ("a", "b"):
        w.load(name)
        w.pass_time(1)
    engine = w.engines.pop("a")
    w.post(events.EngineGone("a", engine.generation, Exit(engine.pid, None, ("bye",)), "look at its log"))
    w.end("b", code=0)
    w.pass_time(20)
    return w


@story
def one_is_missing_and_one_is_broken() -> World:
    w = world("a", "b")
    w.unfit = {"a": events.Unfit("its file is not there", "mount the disk", "file")}
    w.broken = {"b"}
    tried(w, "a")
    tried(w, "b")
    w.pass_time(100)
    del w.unfit["a"]
    tried(w, "a")
    w.pass_time(1)
    return w


@story
def a_start_that_is_refused_by_its_engine() -> World:
    w = world("a", load_s={"a": 5.0})
    w.load("a")
    w.pass_time(1)
    del w.engines["a"]
    w.post(events.LoadEnded("a", 1, "no such flag", "take --frob out", "flags", ("tail",), preflight=True))
    w.pass_time(10)
    return w


@story
def unloaded_by_force_and_killed() -> World:
    w = world("a", "b", load_s={"b": 9.0})
    w.load("a", use=True)
    w.load("b")
    w.pass_time(2)
    w.unload("a", BOB, force=True)
    w.post(events.KillBegan("a", 1))
    w.settle()
    w.unload("b")
    w.pass_time(2)
    w.unload()
    return w


@story
def an_unload_that_waits_in_vain() -> World:
    w = world("a", "b")
    for name in ("a", "b"):
        w.load(name, use=True)
        w.pass_time(1)
    w.post(events.HoldAsked(7, "b", BOB, "a demo", "app", frozenset(("unload", "evict"))))
    with suppress(GpudError):
        w.unload("b")
    w.unload(others=True)
    w.pass_time(1)
    w.post(events.UseEnded("b"))
    w.pass_time(301)
    w.post(events.HoldDropped(7, "its owner has gone"))
    return w


@story
def an_unload_that_is_taken_back() -> World:
    w = world("a")
    w.load("a", use=True)
    w.settle()
    job = w.unload("a")
    w.post(events.CancelAsked(job))
    load = w.load("a")
    with suppress(GpudError):
        w.post(events.CancelAsked(load))
    w.pass_time(1)
    return w


@story
def another_context_and_another_engine() -> World:
    w = world("a")
    w.models["a"] = model("a", alternatives=(model("a", engine="ollama"),))
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    tried(w, "a", engines=("vllm",))
    w.load("a", engines=("ollama",), idle_timeout_s=50.0, context=2048)
    tried(w, "a", engines=("llama_server",))
    w.settle()
    tried(w, "a", engines=("llama_server",))
    tried(w, "a", context=4096)
    tried(w, "a", idle_timeout_s=70.0)
    w.pass_time(80)
    return w


@story
def it_says_that_it_takes_more_than_there_is() -> World:
    w = world("a", gpus={GPU: Gpu(6 * GIB)}, load_s={"a": 4.0}, says={"a": 7 * GIB})
    w.load("a")
    w.pass_time(20)
    return w


@story
def it_takes_more_than_it_was_promised() -> World:
    w = world("a", gpus={GPU: Gpu(6 * GIB)}, load_s={"a": 10.0}, real_sizes={"a": 7 * GIB})
    w.load("a")
    w.pass_time(60)
    return w


@story
def it_ends_for_lack_of_memory() -> World:
    w = world("a", oom={"a": 3 * GIB + 1})
    w.load("a")
    w.pass_time(60)
    return w


@story
def memory_that_comes_back_late_or_never() -> World:
    w = world("a", "b", size=5 * GIB, drivers_linger=True)
    w.load("a")
    w.pass_time(1)
    w.load("b")
    w.pass_time(3)
    w.gpus[GPU].late_bytes //= 2
    w.pass_time(30)
    return w


@story
def a_split_model_a_smaller_one_and_one_without_a_gpu() -> World:
    whole = Offer((Share(ANY_GPU, 9 * GIB), Share(HOST, GIB // 4)), Source.FORMULA)
    halves = (Share(GPU, 4 * GIB), Share(GPU1, 5 * GIB), Share(HOST, GIB // 4))
    split = Offer(halves, Source.FORMULA, split=(0.45, 0.55))
    smaller = Offer((Share(ANY_GPU, 2 * GIB),), Source.MEASURED, context=4096, reduced="a context of 4096")
    off = Offer((Share(HOST, 5 * GIB),), Source.FORMULA, layers=0, reduced="no layers on the GPU")
    w = world("a", "b", "c", gpus={GPU: Gpu(), GPU1: Gpu()})
    w.quotes = {"a": Quote((whole, split)), "b": Quote((whole, smaller)), "c": Quote((whole, off))}
    for name in ("a", "b", "c"):
        w.load(name, use=True)
        w.pass_time(1)
    return w


@story
def an_earlier_daemons_engines() -> World:
    w = world("a", "b")
    w.adopt("a", Share(GPU, 3 * GIB), Share(HOST, 100 * MIB))
    w.adopt("b", Share(GPU, 2 * GIB), stale=True)
    w.post(events.UsersRestored({"a": frozenset(("4711-1",)), "b": frozenset(("",))}))
    w.pass_time(30)
    return w


@story
def changed_and_removed() -> World:
    w = world("a", "b", "c", size=2 * GIB)
    for name in ("a", "b"):
        w.load(name)
        w.pass_time(1)
    w.post(events.UseBegan("a"))
    w.load("c", BOB)
    changed = {"a": model("a", idle_timeout_s=10.0), "c": model("c")}
    w.post(events.CatalogueTaken(changed, frozenset(("a",))))
    w.pass_time(1)
    w.post(events.UseEnded("a"))
    w.pass_time(20)
    w.post(events.BudgetSet(3 * GIB))
    w.post(events.IdleTimeoutSet(20.0))
    w.post(events.PowerSeen(on_battery=True))
    w.pass_time(30)
    return w


@story
def claims_wait_for_models_and_for_each_other() -> World:
    w = world("a")
    w.load("a")
    w.pass_time(1)
    first = w.claim(6 * GIB)
    w.pass_time(1)
    w.programs[first].used_bytes = 5 * GIB
    w.claim(4 * GIB, BOB, who="render.py", priority=Priority.HIGH, wait_s=3.0)
    w.claim(4 * GIB, CAROL, who="eval.py")
    with suppress(GpudError):
        w.claim(20 * GIB, CAROL, who="huge.py")
    w.pass_time(5)
    tried(w, "a")
    w.drop(first)
    w.pass_time(12)
    return w


@story
def other_programs_take_the_memory() -> World:
    w = world("a", "b", size=2 * GIB)
    for name in ("a", "b"):
        w.load(name)
        w.pass_time(2)
    w.post(events.UseBegan("b"))
    w.gpus[GPU].programs = {"blender": 3 * GIB + GIB // 2, "game": GIB // 4}
    w.pass_time(12)
    w.gpus[GPU].programs = {"game": 5 * GIB}
    w.pass_time(12)
    w.gpus[GPU].programs = {}
    w.pass_time(12)
    return w


@story
def the_gpus_are_given_away() -> World:
    w = world("a", "b")
    w.load("a", use=True)
    w.pass_time(1)
    w.post(events.YieldAsked(ALICE, "a game", 30.0))
    tried(w, "b")
    w.pass_time(2)
    w.post(events.UseEnded("a"))
    w.pass_time(40)
    w.post(events.YieldAsked(BOB, "", None))
    w.post(events.ResumeAsked(BOB))
    w.pass_time(1)
    return w


@story
def the_machine_sleeps_and_wakes_up() -> World:
    w = world("a", "b", load_s={"b": 20.0})
    w.load("a", use=True)
    w.pass_time(1)
    w.load("b")
    w.pass_time(1)
    w.forced |= {"a", "b"}
    w.post(events.SuspendAsked(4.0))
    tried(w, "b")
    w.pass_time(5)
    w.post(events.WokeUp(problem="the driver does not answer", hint="restart it", vendor="nvidia"))
    w.pass_time(5)
    w.post(events.WokeUp())
    w.pass_time(30)
    return w


@story
def gpud_ends() -> World:
    w = world("a", "b", "c", size=2 * GIB, load_s={"b": 20.0})
    for name in ("a", "b"):
        w.load(name, use=True)
        w.pass_time(1)
    w.claim(GIB)
    w.load("c", BOB)
    w.post(events.ShutdownAsked())
    tried(w, "c")
    w.pass_time(1)
    w.post(events.ShutdownAsked())
    w.pass_time(30)
    return w


@story
def who_waits_is_shown_in_the_order_of_the_queue() -> World:
    w = world("a", "b", "c", "d", size=5 * GIB)
    w.load("a", use=True)
    w.pass_time(1)
    w.load("b", BOB)
    w.load("c", CAROL, priority=Priority.HIGH, wait_s=30.0)
    w.load("c", BOB, priority=Priority.LOW)
    w.load("b", ALICE, wait_s=9.0)
    w.pass_time(1)
    w.claim(4 * GIB, CAROL)
    w.settle()
    tried(w, "d")
    tried(w, "d", wait_s=0.0)
    shows(w)
    w.pass_time(6)
    shows(w)
    w.post(events.UseEnded("a"))
    w.pass_time(2)
    for size in (GIB, 3 * GIB, 6 * GIB, 30 * GIB):
        w.told.append(w.scheduler.consider(size, ""))  # type: ignore[arg-type]
    w.told.append(w.scheduler.consider(GIB, "7"))  # type: ignore[arg-type]
    return w


@story
def sessions_end() -> World:
    w = world("a", "b", "c", size=2 * GIB)
    one, other = (Session(f"{pid}-1", 1000, pid, f"bash (pid {pid})", "pts/1") for pid in (4711, 4712))
    mine, theirs = (Caller(":1.9", 1000, one.pid, "gpudctl", session=session.id) for session in (one, other))
    for session in (one, other):
        w.post(events.SessionBegan(session))
    for name, caller in (("a", mine), ("b", mine), ("b", theirs), ("c", mine)):
        w.load(name, caller)
        w.pass_time(1)
    w.post(events.UseBegan("c", one.id))
    w.post(events.HoldAsked(3, "a", Caller(session_owner(one.id), 1000), "", "sh", frozenset(("unload",))))
    w.post(events.SessionEnded(one.id, "it exited"))
    w.pass_time(7)
    w.post(events.UseEnded("c"))
    w.pass_time(1)
    w.post(events.SessionEnded(other.id, "killed"))
    w.pass_time(7)
    return w


@story
def the_catalogue_changes_under_what_loads_fails_and_waits() -> World:
    names = ("a", "b", "c", "d", "e")
    w = world(*names, size=GIB, load_s={"a": 30.0, "b": 30.0}, broken={"c", "d"})
    w.quotes["e"] = Quote.simple(20 * GIB)
    for name in names:
        w.load(name)
        w.pass_time(0.5)
    shows(w)
    changed = {name: model(name, least_context=2048) for name in ("a", "c")}
    w.post(events.CatalogueTaken({**changed, "e": model("e")}, frozenset(("a", "c"))))
    w.pass_time(1)
    shows(w)
    w.post(events.Reconfigured({}, w.limits, 60.0, frozenset()))
    w.pass_time(40)
    return w


@story
def more_is_held_than_was_reserved_and_the_gpu_is_nearly_full() -> World:
    limits = Limits(gpu=BudgetLimits(budget_percent=95.0), host=BudgetLimits(), memory_wait_s=5.0, alert_percent=75.0)
    w = world("a", "b", limits=limits, real_sizes={"a": 6 * GIB + 1, "b": GIB})
    w.load("a")
    w.pass_time(1)
    w.unload("a")
    w.pass_time(1)
    w.load("b")
    w.pass_time(30)
    w.post(events.LookAsked())
    w.settle()
    return w


@story
def a_game_has_the_gpus() -> World:
    w = world("a", "b", size=2 * GIB)
    w.models["b"] = model("b", gpu=HOST)
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.load("a")
    w.load("b")
    w.pass_time(1)
    w.post(events.HoldAsked(1, "", BOB, "playing", "steam", frozenset(("game",))))
    tried(w, "a")
    w.pass_time(3)
    shows(w)
    w.post(events.HoldDropped(1, "the game has ended"))
    w.pass_time(3)
    return w


@story
def a_second_end_does_not_wait() -> World:
    w = world("a", "b", size=2 * GIB)
    for name in ("a", "b"):
        w.load(name, use=True)
        w.pass_time(1)
    w.forced |= {"a", "b"}
    w.post(events.SuspendAsked(8.0, shutdown=True))
    w.post(events.ShutdownAsked())
    w.pass_time(0.1)
    w.busy = {"a"}
    w.post(events.ShutdownAsked())
    w.post(events.ShutdownAsked())
    w.pass_time(10)
    return w


@story
def a_sleep_that_leaves_no_time() -> World:
    w = world("a", "b", "c", size=GIB, load_s={"c": 50.0})
    w.models["b"] = model("b", gpu=HOST)
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    for name in ("a", "b", "c"):
        w.load(name, use=name == "a")
        w.pass_time(1)
    w.forced |= {"a", "b", "c"}
    w.post(events.SuspendAsked(0.4, keep=True, lost={"nvidia": "it does not keep its memory"}))
    while stop := next((a for a in w.pending if isinstance(a, events.Stop)), None):
        w.pending.remove(stop)
    w.pass_time(2)
    shows(w)
    for name in [name for name in ("a", "c") if name in w.engines]:
        w.end(name)
    w.post(events.WokeUp())
    w.pass_time(60)
    return w


@story
def a_crash_while_requests_are_answered_and_it_is_to_be_renewed() -> World:
    w = world("a", "b", size=GIB)
    for name in ("a", "b"):
        w.load(name, use=True)
        w.pass_time(1)
    w.post(events.CatalogueTaken({"a": model("a", least_context=2048)}, frozenset(("a",))))
    w.unload("a")
    w.end("a", code=2)
    w.end("b", code=2)
    w.pass_time(20)
    return w


@story
def a_machine_without_a_gpu() -> World:
    limits = Limits(gpu=BudgetLimits(budget_bytes=12 * GIB, budget_percent=50.0), host=BudgetLimits(reserve_bytes=GIB))
    w = world("a", "b", "c", limits=limits, gpus={})
    w.models["c"] = model("c", gpu="3")
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    tried(w, "a", use=True)
    w.pass_time(1)
    tried(w, "b")
    tried(w, "c")
    w.pass_time(1)
    w.claim(GIB, priority=Priority.LOW)
    w.pass_time(1)
    shows(w)
    w.post(events.BudgetSet(5 * GIB))
    w.pass_time(1)
    return w


@story
def who_would_not_wait() -> World:
    w = world("a", "b", "c", "d", size=5 * GIB)
    w.load("a", use=True)
    w.pass_time(1)
    for name in ("b", "c"):
        tried(w, name, wait_s=0.0)
    w.claim(6 * GIB, BOB, wait_s=0.0)
    w.pass_time(1)
    w.load("d", CAROL)
    w.pass_time(1)
    tried(w, "b", wait_s=0.0)
    w.load("c", BOB, wait_s=0.0)
    w.load("c", CAROL)
    w.pass_time(1)
    shows(w)
    w.post(events.UseEnded("a"))
    w.pass_time(2)
    w.pass_time(30)
    return w


def shows(w: World) -> None:
    """What is to be seen in the middle of it."""
    w.told += seen(w)  # type: ignore[arg-type]


def seen(w: World) -> list[object]:
    shown = w.scheduler
    lists = (shown.gpu_statuses(), list(shown.model_statuses()), shown.job_statuses(), shown.queue_statuses())
    return [status for one in (*lists, shown.claim_statuses(), shown.hold_statuses()) for status in one]


def shown(value: object) -> str:
    """A value in a line, without what is as it is by default; a model by its name."""
    match value:
        case Model(name, engine):
            return f"{name}@{engine}"
        case Enum():
            return str(value.value)
        case Struct():
            defaults = [
                *(None,) * (len(value.__struct_fields__) - len(value.__struct_defaults__)),
                *value.__struct_defaults__,
            ]
            fields = zip(value.__struct_fields__, defaults, strict=True)
            own = [(name, getattr(value, name)) for name, default in fields if getattr(value, name) != default]
            return f"{type(value).__name__}({', '.join(f'{name}={shown(one)}' for name, one in own)})"
        case Mapping():
            return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
        case frozenset():
            return "{" + ", ".join(sorted(map(shown, value))) + "}"
        case tuple() | list():
            return "(" + ", ".join(map(shown, value)) + ")"
        case float():
            return f"{value:.6g}"
        case GpudError():
            return f"{type(value).__name__}({value.text!r})"
        case _:
            return repr(value)


def folded(lines: list[str]) -> list[str]:
    """What comes again and again, alone or in pairs, stands there once with its number."""
    found: list[str] = []
    place = 0
    while place < len(lines):
        for length in (1, 2):
            part = lines[place : place + length]
            times = 1
            while lines[place + times * length : place + (times + 1) * length] == part:
                times += 1
            if times > 1:
                break
        else:
            part, times = lines[place : place + 1], 1
        found += part if times == 1 else [f"{times} times: {' | '.join(part)}"]
        place += times * len(part)
    return found


def told(tell: Story) -> list[str]:
    """All that is done and said, and what is to be seen in the end."""
    w = tell()
    lines = [*(shown(action) for action in w.told), *(f"= {shown(status)}" for status in seen(w))]
    return [*folded(lines), f"= next deadline {shown(w.scheduler.next_deadline())}, uses {shown(w.scheduler.uses())}"]


def kept() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in FILE.read_text().splitlines():
        if line.startswith("# "):
            found[line[2:]] = lines = []
        elif line:
            lines.append(line)
    return found


if __name__ == "__main__":
    FILE.write_text("\n".join("\n".join([f"# {name}", *told(tell), ""]) for name, tell in STORIES.items()))
