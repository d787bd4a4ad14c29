"""Who may do what, with which arguments, and what the engine is asked then."""

import asyncio
import os
from typing import Any

import pytest
from jeepney import MessageFlag

from gpud.core.errors import BackendFailed
from gpud.core.events import Kind, LoadOptions, Notice, UnloadResult
from gpud.core.facts import JobResult, Priority
from gpud.dbus.limits import CallerLimits

from .fake_engine import FakeEngine, gpu, status
from .peers import NAME, PATH, Polkit, busctl, peer, serving, tool
from .private_bus import NOBODY, MockPolkit, PrivateBus

STANDARD = "org.freedesktop.DBus.Error."
OWN = f"{NAME}.Error."


# Loading and unloading ------------------------------------------------------------------------------------------------


def test_load_passes_the_caller_as_the_bus_vouches_for_it(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """The engine learns the caller's unique name, uid and PID, which the caller did not say itself."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            assert await client.call("Load", "s", "tiny") == 1
            _, model, caller, options = engine.asked("load")[0]
            assert (model, options) == ("tiny", LoadOptions())
            assert (caller.owner, caller.uid, caller.pid) == (client.name, 0, os.getpid())
            assert f"pid {os.getpid()}" in caller.label

    run(scenario())


def test_load_options_reach_the_engine_in_its_units(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Microseconds become seconds; what is not given stays as configured."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            options = {
                "idle-timeout-usec": ("t", 1_500_000),
                "context-size": ("u", 4096),
                "evict": ("b", False),
                "priority": ("s", "high"),
                "wait-usec": ("t", 0),
                "engines": ("as", ["vllm", "llama_server", "vllm"]),
            }
            await client.call("LoadWithOptions", "sa{sv}", "tiny", options)
            await client.call("LoadWithOptions", "sa{sv}", "tiny", {})
            assert [call[3] for call in engine.asked("load")] == [
                LoadOptions(
                    idle_timeout_s=1.5,
                    context=4096,
                    evict=False,
                    priority=Priority.HIGH,
                    wait_s=0.0,
                    engines=("vllm", "llama_server"),
                ),
                LoadOptions(),
            ]

    run(scenario())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speed": ("u", 1)}, '"idle-timeout-usec", "context-size", "hold", "evict"'),
        ({"hold": ("s", "yes")}, 'its type is "b"'),
        ({"context-size": ("t", 4096)}, 'its type is "u"'),
        ({"priority": ("s", "urgent")}, "it can be low, normal, high, critical"),
        ({"engines": ("s", "vllm")}, 'its type is "as"'),
        ({"engines": ("as", ["a b"])}, "engines has 'a b', which is no engine's name"),
        ({"engines": ("as", [str(number) for number in range(9)])}, "engines names 9 engines, the limit is 8"),
    ],
)
def test_options_that_are_unknown_or_of_another_type_are_refused_with_what_is_allowed(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, options: dict[str, Any], says: str
) -> None:
    """Error.InvalidOption names the allowed keys, or the type, and nothing is loaded."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            refused = await client.refused("LoadWithOptions", "sa{sv}", "tiny", options)
            assert refused.name == OWN + "InvalidOption"
            assert says in refused.text
            assert engine.asked("load") == []

    run(scenario())


@pytest.mark.parametrize("model", ["", "x" * 129, "a\nb", "\x1b[31m"])
def test_a_model_name_that_cannot_be_one_is_refused(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, model: str
) -> None:
    """Empty, too long, unprintable: InvalidArgs before anybody is asked."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            for member, signature, rest in (("Load", "s", ()), ("Hold", "sss", ("why", "app"))):
                refused = await client.refused(member, signature, model, *rest)
                assert refused.name == STANDARD + "InvalidArgs"
            assert engine.calls == []

    run(scenario())


def test_errors_of_the_engine_keep_their_name_and_their_hint(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """NoSuchModel arrives as such, with the sentence and what to do next."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            refused = await client.refused("Load", "s", "tinny")
            assert refused.name == OWN + "NoSuchModel"
            assert refused.text == 'there is no model "tinny"; did you mean "tiny"?'

    run(scenario())


def test_unload_knows_all_the_ways_to_say_all(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """Unload("all"), Unload("") and UnloadAll are one; force goes along only where it was asked for."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            await client.call("Unload", "s", "tiny")
            await client.call("Unload", "s", "all")
            await client.call("Unload", "s", "")
            await client.call("UnloadAll")
            await client.call("UnloadWithOptions", "sa{sv}", "tiny", {})
            await client.call("UnloadWithOptions", "sa{sv}", "tiny", {"force": ("b", True)})
            asked = [(model, force, others) for _, model, _, force, others in engine.asked("unload")]
            assert asked == [
                ("tiny", False, False),
                *[("", False, False)] * 3,
                ("tiny", False, False),
                ("tiny", True, True),
            ]

    run(scenario())


def test_settings_and_reload_reach_the_engine(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """SetIdleTimeout, SetVramBudget and Reload; a configuration that is wrong comes back with every problem."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            await client.call("SetIdleTimeout", "t", 90_000_000)
            await client.call("SetVramBudget", "t", 6 << 30)
            await client.call("Reload")
            assert engine.calls == [("set_idle_timeout", 90.0), ("set_budget", 6 << 30), ("reload",)]
            assert (await client.refused("SetIdleTimeout", "t", 1 << 62)).name == STANDARD + "InvalidArgs"
            assert (await client.refused("SetVramBudget", "t", 1 << 62)).name == STANDARD + "InvalidArgs"
            engine.problems = ["gpud.yaml: models: too few", "gpud.yaml: color: unknown"]
            refused = await client.refused("Reload")
            assert refused.name == OWN + "ConfigInvalid"
            assert refused.text == "gpud.yaml: models: too few\ngpud.yaml: color: unknown"

    run(scenario())


# Permission -----------------------------------------------------------------------------------------------------------


def test_without_polkit_only_root_may_and_the_refusal_says_so(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Nobody else loads on a machine without polkit; everybody sees the status."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library):
            where = ("--address", private_bus.address, "--dest", NAME, "--object-path", PATH)
            status, _, complaint = await tool("gdbus", "call", *where, "--method", f"{NAME}.Load", "tiny", uid=NOBODY)
            assert status != 0
            assert "org.freedesktop.DBus.Error.AccessDenied" in complaint
            assert "there is no polkit on this machine, so that only uid 0 may" in complaint
            status, shown, _ = await busctl(private_bus.address, "call", NAME, PATH, NAME, "Status", uid=NOBODY)
            assert status == 0 and '"InterfaceVersion" u 5' in shown
            assert engine.asked("load") == []

    run(scenario())


def test_a_real_polkit_mock_decides_action_by_action(
    run: Any, mortal_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """python-dbusmock's polkitd, another implementation of the protocol: what it allows works, the rest is denied."""
    notices: list[Notice] = []

    async def scenario() -> None:
        polkit = await asyncio.to_thread(MockPolkit, mortal_bus.address)
        try:
            async with (
                serving(mortal_bus.address, engine, library=library, notices=notices),
                peer(mortal_bus.address, NOBODY) as client,
            ):
                refused = await client.refused("Load", "s", "tiny")
                assert refused.name == STANDARD + "AccessDenied"
                assert f"({NAME}.load)" in refused.text and "50-gpud.rules" in refused.text
                await asyncio.to_thread(polkit.tell, "SetAllowed", "as", "1", f"{NAME}.load")
                assert await client.call("Load", "s", "tiny") == 1
                assert (await client.refused("Unload", "s", "tiny")).name == STANDARD + "AccessDenied"
                assert (await client.refused("Reload")).name == STANDARD + "AccessDenied"
        finally:
            polkit.kill()

    run(scenario())
    denied = [notice for notice in notices if notice.kind is Kind.DENIED]
    assert len(denied) == 1, "one line in the journal for a caller that keeps trying"
    assert denied[0].fields["CALLER_UID"] == NOBODY and denied[0].model == "tiny"


@pytest.mark.parametrize(
    ("member", "signature", "arguments", "action", "model"),
    [
        ("Load", "s", ("tiny",), "load", "tiny"),
        ("Unload", "s", ("tiny",), "unload", "tiny"),
        ("UnloadAll", None, (), "unload", "all models"),
        ("UnloadWithOptions", "sa{sv}", ("tiny", {"force": ("b", True)}), "unload-others", "tiny"),
        ("Hold", "sss", ("tiny", "why", "app"), "hold", "tiny"),
        ("SetIdleTimeout", "t", (1,), "manage", "all models"),
        ("SetVramBudget", "t", (1,), "manage", "all models"),
        ("Reload", None, (), "manage", "all models"),
        ("Yield", "ts", (0, "a game"), "manage", "all models"),
        ("Resume", None, (), "manage", "all models"),
        ("Inhibit", "sss", ("unload", "who", "why"), "hold", "all models"),
        ("Inhibit", "sss", ("load", "who", "why"), "manage", "all models"),
        ("Inhibit", "sss", ("load:evict", "who", "why"), "manage", "all models"),
    ],
)
def test_each_method_asks_for_its_own_action_about_the_callers_connection(
    run: Any,
    private_bus: PrivateBus,
    engine: FakeEngine,
    member: str,
    signature: str | None,
    arguments: tuple[Any, ...],
    action: str,
    model: str,
) -> None:
    """The subject is the caller's unique name, never a PID; a denial means that the engine is not asked."""
    polkit = Polkit()
    polkit.answer = (False, False)

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            polkit.on(private_bus.address),
            peer(private_bus.address, NOBODY) as client,
        ):
            refused = await client.refused(member, signature, *arguments)
            assert refused.name == STANDARD + "AccessDenied"
            question = polkit.asked.get_nowait()
            subject, asked, details, flags, _ = question.body
            assert subject == ["system-bus-name", {"name": ("s", client.name)}]
            assert (asked, details, flags) == (f"{NAME}.{action}", {"model": model}, 0)
            assert engine.calls == []

    run(scenario())


def test_the_callers_wish_for_a_dialog_is_honoured(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """Only a call that allows interaction lets polkit open a dialog; another is told that it would take one, and the
    journal has it.
    """
    polkit = Polkit()
    polkit.answer = (False, True)
    notices: list[Notice] = []

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine, notices=notices),
            polkit.on(private_bus.address),
            peer(private_bus.address, NOBODY) as client,
        ):
            refused = await client.refused("Load", "s", "tiny")
            assert refused.name == STANDARD + "InteractiveAuthorizationRequired"
            (denied,) = [notice for notice in notices if notice.kind is Kind.DENIED]
            assert "only after authentication (org.kernelcore.GpuD.load)" in denied.message
            assert polkit.asked.get_nowait().body[3] == 0
            flags = MessageFlag.allow_interactive_authorization
            assert (await client.refused("Load", "s", "tiny", flags=flags)).name == STANDARD + "AccessDenied"
            assert polkit.asked.get_nowait().body[3] == 1

    run(scenario())


def test_polkit_that_dies_while_it_is_asked_means_no(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """The call ends at once with a clear error, and nothing was done."""
    polkit = Polkit()
    polkit.answer = None

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine, library=library),
            polkit.on(private_bus.address),
            peer(private_bus.address, NOBODY) as client,
        ):
            call = asyncio.create_task(client.refused("Load", "s", "tiny"))
            await asyncio.wait_for(polkit.asked.get(), 50)
            polkit.leave()
            refused = await call
            assert refused.name == STANDARD + "AccessDenied"
            assert "cannot ask polkit" in refused.text and "nothing was done" in refused.text
            assert engine.calls == []

    run(scenario())


def test_questions_to_polkit_are_bounded_for_each_user(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """One user cannot fill the screen with dialogs, nor keep root out."""
    polkit = Polkit()
    polkit.answer = None

    async def scenario() -> None:
        limits = CallerLimits(polkit=2)
        async with (
            serving(private_bus.address, engine, limits=limits),
            polkit.on(private_bus.address),
            peer(private_bus.address, NOBODY) as client,
            peer(private_bus.address) as root,
        ):
            calls = [asyncio.create_task(client.call("Load", "s", "tiny")) for _ in range(2)]
            questions = [await asyncio.wait_for(polkit.asked.get(), 50) for _ in range(2)]
            assert (await client.refused("Load", "s", "tiny")).name == STANDARD + "LimitsExceeded"
            assert await root.call("Load", "s", "tiny") == 1
            for question in questions:
                polkit.answer_to(question, True)
            assert sorted(await asyncio.gather(*calls)) == [2, 3]

    run(scenario())


def test_in_user_mode_whoever_runs_gpud_may_do_everything(run: Any, open_bus: PrivateBus, engine: FakeEngine) -> None:
    """On a session bus nobody asks polkit; a stranger who got onto it may nothing."""

    async def scenario() -> None:
        async with serving(open_bus.address, engine, user_mode=True):
            async with peer(open_bus.address) as own:
                await own.call("Reload")
                await own.call("UnloadWithOptions", "sa{sv}", "all", {"force": ("b", True)})
                assert [call[0] for call in engine.calls] == ["reload", "unload"]
            async with peer(open_bus.address, NOBODY) as stranger:
                refused = await stranger.refused("Load", "s", "tiny")
                assert refused.name == STANDARD + "AccessDenied"

    run(scenario())


# Jobs -----------------------------------------------------------------------------------------------------------------


def test_jobs_of_ones_own_user_are_canceled_without_asking(
    run: Any, private_bus: PrivateBus, engine: FakeEngine
) -> None:
    """The same user on another connection may; another user's job takes the right to manage."""
    polkit = Polkit()

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            polkit.on(private_bus.address),
            peer(private_bus.address) as root,
            peer(private_bus.address, NOBODY) as client,
        ):
            job = await client.call("Load", "s", "tiny")
            theirs = await root.call("Load", "s", "big")
            polkit.answer = (False, False)
            async with peer(private_bus.address, NOBODY) as same_user:
                await same_user.call("CancelJob", "u", job)
            assert (await client.refused("CancelJob", "u", theirs)).name == STANDARD + "AccessDenied"
            assert (await client.refused("CancelJob", "u", job)).name == OWN + "NoSuchJob"
            assert [call[1] for call in engine.asked("cancel")] == [job]
            assert list(engine.jobs) == [theirs]

    run(scenario())


def test_jobs_are_bounded_for_each_user(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """The seventeenth load of one user is refused with the number and the limit."""

    async def scenario() -> None:
        limits = CallerLimits(jobs=2)
        async with serving(private_bus.address, engine, limits=limits), peer(private_bus.address) as client:
            assert [await client.call("Load", "s", "tiny") for _ in range(2)] == [1, 2]
            for member, signature, rest in (("Load", "s", ("tiny",)), ("UnloadAll", None, ())):
                refused = await client.refused(member, signature, *rest)
                assert refused.name == STANDARD + "LimitsExceeded"
                assert "2 loads and unloads under way, the limit is 2" in refused.text
            engine.end(1)
            assert await client.call("Load", "s", "tiny") == 3

    run(scenario())


def test_a_load_goes_on_when_its_caller_has_left(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """Only holds die with their caller."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            peer(private_bus.address) as watcher,
            watcher.signals() as signals,
        ):
            async with peer(private_bus.address) as client:
                job = await client.call("Load", "s", "tiny")
            assert (await busctl(private_bus.address, "status"))[0] == 0
            assert list(engine.jobs) == [job]
            engine.end(job)
            assert await signals.next("JobRemoved") == ("JobRemoved", (job, "tiny", "done", ""))

    run(scenario())


def test_a_job_tells_how_it_is_and_how_it_ended(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """What it did is there for programs; its sentence is for people."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            load = await client.call("Load", "s", "tiny")
            running = await client.call("Job", "u", load)
            same = (await client.call("Status"))["Jobs"][1][0]
            # The clock of this engine stands still while the wall clock goes on.
            assert {**same, "SinceUSec": running["SinceUSec"]} == running
            assert (running["Kind"], running["Model"]) == (("s", "load"), ("s", "tiny"))
            engine.end(load, JobResult.FAILED, "no; mend it", BackendFailed("no", hint="mend it", kind="crashed"))
            assert await client.call("Job", "u", load) == {
                "Id": ("u", load),
                "Kind": ("s", "load"),
                "Model": ("s", "tiny"),
                "Uid": ("u", os.getuid()),
                "Caller": running["Caller"],
                "Result": ("s", "failed"),
                "Message": ("s", "no; mend it"),
                "Error": ("s", "no"),
                "ErrorCode": ("s", "crashed"),
                "ErrorHint": ("s", "mend it"),
            }
            unload = await client.call("UnloadAll")
            engine.end(unload, unload=UnloadResult({"big": 5}, {"held": "by sam"}, ("failed",), ("away",)))
            ended = await client.call("Job", "u", unload)
            assert (ended["Kind"], ended["Result"], ended["ErrorCode"]) == (("s", "unload"), ("s", "done"), ("s", ""))
            assert {key: ended[key] for key in ("Unloaded", "Left", "CalledOff", "StayAway")} == {
                "Unloaded": ("a{st}", {"big": 5}),
                "Left": ("a{ss}", {"held": "by sam"}),
                "CalledOff": ("as", ["failed"]),
                "StayAway": ("as", ["away"]),
            }
            refused = await client.refused("Job", "u", unload + 1)
            assert refused.name == f"{NAME}.Error.NoSuchJob"

    run(scenario())


def test_status_shows_everything_at_one_moment(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Properties, models, devices with their processes, and jobs, under the documented keys and types."""
    engine.models["tiny"] = status("tiny", pids=(42, 43), used_bytes=5, error="it broke", error_hint="mend it")

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            await client.call("Load", "s", "big")
            shown = await client.call("Status")
            model = shown["Models"][1][0]
            assert {
                key: model[key] for key in ("Id", "Backend", "State", "Pid", "VramBytes", "Error", "ErrorHint")
            } == {
                "Id": ("s", "tiny"),
                "Backend": ("s", "llama_server"),
                "State": ("s", "unloaded"),
                "Pid": ("u", 42),
                "VramBytes": ("t", 5),
                "Error": ("s", "it broke"),
                "ErrorHint": ("s", "mend it"),
            }
            device = shown["Gpus"][1][0]
            assert device["Uuid"] == ("s", "GPU-1") and device["VramForeign"] == ("t", 1 << 30)
            game, driver = device["Processes"][1]
            assert game == {"Pid": ("u", 4711), "Name": ("s", "game"), "UsedBytes": ("t", 1 << 30), "Own": ("b", False)}
            assert driver == {"Pid": ("u", 4712), "Name": ("s", "driver"), "Own": ("b", False)}
            job = shown["Jobs"][1][0]
            assert (job["Id"], job["Kind"], job["Model"]) == (("u", 1), ("s", "load"), ("s", "big"))
            assert (job["Progress"], job["Uid"]) == (("d", 0.25), ("u", 0))
            assert shown["Models"][1] == await client.call("ListModels")
            assert shown["Gpus"][1] == await client.call("ListGpus")

    run(scenario())


def test_old_figures_are_looked_at_again_before_they_are_shown(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Whoever asks what holds the GPU gets what holds it now."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            for method in ("Status", "ListGpus"):
                engine.gpus, engine.fresh_gpus = (gpu(2 << 30),), (gpu(5 << 30),)
                shown = await client.call(method)
                device = (shown["Gpus"][1] if method == "Status" else shown)[0]
                assert device["VramUsed"] == ("t", 5 << 30)

    run(scenario())
