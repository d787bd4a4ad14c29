"""The doors of gpud as a service: who asks, asks with curl from inside the machine, as an ordinary user."""

import json
import re
import shlex
from collections.abc import Iterator

import pytest
from booted_machine import COMMAND_S, Machine

from gpud.core.events import Kind
from gpud.log import MESSAGE_IDS

pytestmark = pytest.mark.booted

PORTS = {"front": 8080, "management": 9000, "ollama": 11434}

CONNECTIONS = 2048
"""What each door grants unless it is configured."""

MANY = """\
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
clients = []
for _ in range(int(sys.argv[1])):
    clients.append(socket.create_connection(("127.0.0.1", 8080), 20))
    clients[-1].sendall(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
print(sum(client.recv(4096).startswith(b"HTTP/1.1 200") for client in clients))
"""

SOCKETS = " ".join(f"gpud-{name}.socket" for name in PORTS)


def chat(model: str, *, tokens: int = 8, stream: bool = False, port: int = PORTS["front"]) -> str:
    """The line of shell that asks; it fails for any status but a good one."""
    messages = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": tokens, "stream": stream})
    return (
        f"curl --silent --show-error --fail-with-body --no-buffer -H 'Content-Type: application/json' "
        f"-d {shlex.quote(body)} http://127.0.0.1:{port}/v1/chat/completions"
    )


@pytest.fixture
def tester(machine: Machine) -> str:
    """An ordinary user without any group of gpud's."""
    machine.run("id ordinary || useradd --create-home ordinary")
    return "ordinary"


@pytest.fixture
def passed(machine: Machine) -> Iterator[Machine]:
    """The machine with systemd listening for gpud."""
    machine.run(f"systemctl stop gpud && systemctl start {SOCKETS} && systemctl start gpud")
    yield machine
    machine.run(f"systemctl stop {SOCKETS}; systemctl restart gpud")


def test_every_door_is_open_and_told(machine: Machine) -> None:
    """The journal has each with its address, under an id of its own."""
    machine.run("systemctl restart gpud")
    found = {
        entry["GPUD_DOOR"]: entry["MESSAGE"]
        for entry in machine.entries(
            f"MESSAGE_ID={MESSAGE_IDS[Kind.DOOR_OPENED]} _PID={machine.main_pid()} --unit=gpud"
        )
    }
    assert found == {name: f"Listens on 127.0.0.1:{port} (door {name})" for name, port in PORTS.items()}


def test_an_ordinary_user_is_answered_at_every_door(machine: Machine, tester: str) -> None:
    """A chat loads its model, whichever client asks: OpenAI's at two doors, Ollama's at the third."""
    said = machine.run(chat("tiny", stream=True), user=tester).out
    # What comes before the first word may be comments that say what is waited for.
    assert re.sub(r"^: .*\n+", "", said, flags=re.M).startswith("data: {") and said.endswith("data: [DONE]")
    assert machine.states()["tiny"] == "ready"
    for port in (PORTS["front"], PORTS["management"]):
        answer = json.loads(machine.run(chat("small", port=port), user=tester).out)
        assert answer["choices"][0]["finish_reason"] == "length"
    tags = json.loads(machine.run(f"curl -sSf http://127.0.0.1:{PORTS['ollama']}/api/tags", user=tester).out)
    assert {model["name"].removesuffix(":latest") for model in tags["models"]} >= {"tiny", "small"}
    known = json.loads(machine.run(f"curl -sSf http://127.0.0.1:{PORTS['front']}/v1/models", user=tester).out)
    # Of the machine's other tests there may be models in Ollama's store.
    assert {model["id"] for model in known["data"]} >= {"tiny", "small", "stubborn"}


def test_as_many_clients_as_a_door_grants_are_connected_at_once(machine: Machine, tester: str) -> None:
    """The service's limit of open files leaves room for them, and each is answered while all the others are there."""
    (machine.root / "var/lib/ml-models/custom/many.py").write_text(MANY)
    said = machine.run(f"python3 /var/lib/ml-models/custom/many.py {CONNECTIONS}", user=tester).out
    assert said == str(CONNECTIONS)
    limits = machine.run(f"cat /proc/{machine.main_pid()}/limits").out
    match = re.search(r"^Max open files +(\d+)", limits, re.M)
    assert match is not None
    assert int(match[1]) > CONNECTIONS * len(PORTS) * 2


def test_a_port_that_is_taken_keeps_the_other_doors_open(machine: Machine, tester: str) -> None:
    """gpud runs, the journal says which door and what to do, and a reload opens it once the port is free."""
    port = PORTS["ollama"]
    machine.run("systemctl stop gpud")
    machine.run(f"systemd-run --unit=holder python3 -m http.server --bind 127.0.0.1 {port}")
    try:
        machine.wait("the program in the way", f"curl -s -o /dev/null http://127.0.0.1:{port}/")
        machine.run("systemctl start gpud")
        (entry,) = machine.entries(f"MESSAGE_ID={MESSAGE_IDS[Kind.DOOR_FAILED]} _PID={machine.main_pid()}")
        assert entry["MESSAGE"].startswith(f"Cannot listen on 127.0.0.1:{port} (door ollama): Address already in use")
        assert "http.ollama.port" in entry["MESSAGE"]
        assert entry["PRIORITY"] == "3"
        explained = machine.run(f"journalctl -x MESSAGE_ID={entry['MESSAGE_ID']} --lines=20").out
        assert "Defined-By: gpud" in explained
        machine.run(chat("tiny"), user=tester)
    finally:
        machine.run("systemctl stop holder")
    machine.run("systemctl reload gpud")
    machine.wait("the door", f"curl -sSf http://127.0.0.1:{port}/api/tags")
    assert machine.states()["tiny"] == "ready"


def test_after_a_kill_the_next_gpud_answers_with_the_same_engine(machine: Machine, tester: str) -> None:
    """Nothing is loaded again: whoever asks is refused for a moment and then answered by the engine that was there."""
    machine.run(chat("tiny"), user=tester)
    before = machine.engines()
    machine.run(f"kill -9 {machine.main_pid()}; until {chat('tiny', tokens=1)} >/dev/null 2>&1; do :; done")
    assert machine.engines() == before


def test_a_reload_cuts_no_answer(machine: Machine, tester: str) -> None:
    """Neither one that changes models nor one that changes who may come in."""
    machine.load("tiny")
    with machine.start(f"runuser -u {tester} -- {chat('tiny', tokens=2000, stream=True)}") as answer:
        assert answer.stdout is not None
        assert answer.stdout.readline().startswith("data: ")
        try:
            for text in (
                "models: {extra: {engine: embedded, file: /var/lib/ml-models/llamacpp/models/small.gguf}}",
                "http: {cors_origins: ['http://localhost:3000']}",
            ):
                machine.run(f"echo {shlex.quote(text)} > /etc/gpud/gpud.d/z.yaml && systemctl reload gpud")
                machine.wait(
                    "the reload", "journalctl --unit=gpud --lines=5 GPUD_KIND=config-reloaded | grep -q z.yaml"
                )
        finally:
            machine.run("rm /etc/gpud/gpud.d/z.yaml && systemctl reload gpud")
        assert answer.poll() is None, "the answer ended too early to show anything"
        text = answer.communicate(timeout=COMMAND_S)[0]
    assert answer.returncode == 0
    assert '"finish_reason":"length"' in text
    assert text.rstrip().endswith("data: [DONE]")


def test_the_database_is_gpuds_alone(machine: Machine) -> None:
    """It is in the state directory, with what SQLite keeps beside it; its group may read it, nobody else."""
    machine.load("tiny")
    found = machine.run("cd /var/lib/gpud && stat -c '%n %a %U %G' registry.db*").out.splitlines()
    assert found[0] == "registry.db 640 gpud gpud"
    assert all(re.fullmatch(r"registry\.db\S* 6[04]0 gpud gpud", line) for line in found), found
    assert machine.run("stat -c '%a %U %G' /var/lib/gpud").out == "750 gpud gpud"
    assert machine.run("head -c 15 /var/lib/gpud/registry.db").out == "SQLite format 3"


def test_with_systemds_sockets_a_restart_refuses_nobody(passed: Machine, tester: str) -> None:
    """A running answer ends as it should; who asks meanwhile waits, and the next gpud answers."""
    before = passed.main_pid()
    passed.run(f"{chat('tiny')} && systemd-analyze --man=no verify {SOCKETS}")
    with passed.start(f"runuser -u {tester} -- {chat('tiny', tokens=2000, stream=True)}") as answer:
        assert answer.stdout is not None
        assert answer.stdout.readline().startswith("data: ")
        passed.run("systemctl restart --no-block gpud")
        # Where the rest of the answer fits into what lies between gpud and its reader, that is soon over.
        state, pid = (f"$(systemctl show --value -p {name} gpud)" for name in ("ActiveState", "MainPID"))
        passed.wait("the end of gpud", f'test "{state}" = deactivating || test "{pid}" != {before}')
        for port in PORTS.values():
            # It waits, or is answered: by the next gpud, if that has come meanwhile, or by the old one, if that took it
            # in the moment in which it was told to end. It is never refused (7), reset (56) or left without words (52).
            waits = passed.run(f"curl -sS -o /dev/null --max-time 1 http://127.0.0.1:{port}/", check=False)
            assert waits.code in (0, 28)
        with passed.start(chat("tiny")) as waiting:
            text = answer.communicate(timeout=COMMAND_S)[0]
            assert answer.returncode == 0
            assert text.rstrip().endswith("data: [DONE]")
            said = json.loads(waiting.communicate(timeout=COMMAND_S)[0])
            assert said["choices"][0]["finish_reason"] == "length"
    assert passed.main_pid() != before
    opened = passed.entries(f"MESSAGE_ID={MESSAGE_IDS[Kind.DOOR_OPENED]} _PID={passed.main_pid()}")
    assert {entry["MESSAGE"] for entry in opened} == {
        f"Listens on 127.0.0.1:{port}, as passed by the service manager (door {name})" for name, port in PORTS.items()
    }


def test_with_systemds_sockets_a_reload_and_a_request_do_as_ever(passed: Machine, tester: str) -> None:
    """Other limits open the doors anew on the same sockets, and after a stop the first client starts gpud."""
    try:
        passed.run("echo 'http: {limits: {connections: 100}}' > /etc/gpud/gpud.d/z.yaml && systemctl reload gpud")
        passed.wait("the reload", "journalctl --unit=gpud --lines=5 GPUD_KIND=config-reloaded | grep -q z.yaml")
        passed.run(chat("tiny"), user=tester)
    finally:
        passed.run("rm /etc/gpud/gpud.d/z.yaml && systemctl reload gpud")
    assert "taken" not in passed.run("gpudctl doctor", check=False).out
    passed.run("systemctl stop gpud")
    assert passed.engines() == {}
    passed.run(chat("tiny"), user=tester)
    assert passed.show("gpud", "ActiveState") == "active"
