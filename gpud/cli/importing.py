"""``gpudctl import``: makes a gpud.yaml of what other programs were told. Needs no daemon; nothing it reads is run."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser, some_path
from gpud.cli.exits import DONE, Usage
from gpud.cli.output import Output
from gpud.core.counts import plural
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.importing.reading import Variable
    from gpud.importing.report import Draft, Fate, Given, Note, Report

KINDS = ("llama-swap", "llama-cpp-server", "nixos", "docker-env", "ollama")

DESCRIPTION = """\
Convert the settings of another program and print them as a gpud.yaml, with
comments that name the source of each part. On standard error, report what to
check and what was not converted, why, and what to do instead. gpud accepts the
result as it is. Nothing from the input is executed, and no secret is copied.
llama-swap: its YAML. llama-cpp-server: its JSON. nixos: options as JSON (nix
eval --json). docker-env: a list of variables, or a compose file. ollama: the
variables of its service (FILE: a list of them, a unit, a drop-in, the output
of systemctl show -p Environment, or /proc/PID/environ) and the models of its
store."""

EXAMPLES = (
    "gpudctl import llama-swap config.yaml",
    "gpudctl import llama-swap config.yaml --check",
    "sudo gpudctl import docker-env compose.yaml --map /models=/srv/models --output /etc/gpud/gpud.d/50-old.yaml",
    "nix eval --json .#nixosConfigurations.box.config.services | gpudctl import nixos - --prefix services",
    "gpudctl import ollama /etc/systemd/system/ollama.service.d/override.conf",
    "gpudctl import ollama --engine llama_server --models /usr/share/ollama/.ollama/models",
)

_ONLY_FOR = {
    "map": ("docker-env", "llama-swap", "llama-cpp-server"),
    "prefix": ("nixos",),
    "name": ("docker-env",),
    "models": ("ollama",),
    "engine": ("ollama",),
    "environment": ("llama-swap", "docker-env", "ollama"),
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("kind", choices=KINDS, help="program to convert from")
    parser.add_argument("file", metavar="FILE", nargs="?", help="settings to read; - is standard input")
    parser.add_argument(
        "--output", type=some_path, metavar="FILE", help="write the configuration to FILE; - is standard output"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--check", action="store_true", help="only show what would become of each setting")
    parser.add_argument(
        "--directory",
        type=some_path,
        metavar="DIR",
        help="base of relative paths (default: the folder of FILE)",
    )
    parser.add_argument(
        "--environment",
        metavar="FILE",
        action="append",
        help="llama-swap, docker-env: variables for ${env.NAME} and ${NAME}; ollama: variables of its service",
    )
    parser.add_argument(
        "--map",
        metavar="INSIDE=OUTSIDE",
        action="append",
        help="the path INSIDE in a container is OUTSIDE on this machine",
    )
    parser.add_argument("--name", metavar="NAME", help="docker-env: name of the model (default: that of its file)")
    parser.add_argument("--prefix", metavar="OPTION", help="nixos: option whose value FILE contains")
    parser.add_argument(
        "--models", type=some_path, metavar="DIR", help="ollama: model store (default: OLLAMA_MODELS, or a usual place)"
    )
    parser.add_argument(
        "--engine",
        choices=("ollama", "llama_server"),
        help="ollama: engine for the models; llama_server reads the files in Ollama's store itself",
    )


def run(arguments: Namespace, output: Output) -> int:
    _check_usage(arguments)
    from gpud.cli.config import engines
    from gpud.importing.settling import settle

    report = settle(_draft(arguments), engines())
    target = "" if arguments.output in (None, "-") else arguments.output
    if target and not arguments.check:
        from gpud.cli.importing_files import write

        write(Path(target), report.text, force=arguments.force)
    if output.wants_json:
        output.json(_as_data(report, target))
    elif arguments.check:
        output.text("\n".join(_lines(report, everything=True)))
    else:
        if target:
            output.note(f"wrote {target}")
        else:
            output.text(report.text.rstrip("\n"))
        output.note("\n".join(_lines(report, everything=False)))
        if target:
            output.note(f'"gpudctl config check {target}" looks at it; "gpudctl reload" has gpud read it')
    return DONE


def _check_usage(arguments: Namespace) -> None:
    for option, kinds in _ONLY_FOR.items():
        if getattr(arguments, option) and arguments.kind not in kinds:
            raise Usage(f"import: --{option} does not apply to {arguments.kind}", hint=f"it is for {', '.join(kinds)}")
    if not arguments.file and arguments.kind != "ollama":
        raise Usage(f"import: {arguments.kind} needs a FILE", hint='"-" reads standard input')
    if arguments.check and arguments.output:
        raise Usage("import: --check writes nothing", hint="leave --output or --check out")
    if arguments.force and not arguments.output:
        raise Usage("import: --force is for --output", hint="add --output FILE, or leave it out")


def _draft(arguments: Namespace) -> "Draft":
    if arguments.kind == "ollama":
        return _of_ollama(arguments)
    from gpud.cli.importing_files import read
    from gpud.importing import containers, llama_cpp_server, llama_swap, nixos
    from gpud.importing.reading import decode

    text = decode(read(arguments.file), arguments.file)
    given = _given(arguments)
    if arguments.kind == "llama-swap":
        return llama_swap.draft(text, given)
    if arguments.kind == "llama-cpp-server":
        return llama_cpp_server.draft(text, given)
    if arguments.kind == "nixos":
        return nixos.draft(text, given, arguments.prefix or "")
    return containers.draft(text, given, arguments.name or "")


def _given(arguments: Namespace, file: str = "") -> "Given":
    from gpud.importing.report import Given

    file = file or arguments.file
    beside = Path(file).parent if file != "-" else Path()
    directory = os.path.abspath(arguments.directory or beside)  # noqa: PTH100 - links stay as they were written
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() may raise
    variables = dict(os.environ)
    for one in _variables(arguments.environment or ())[0]:
        if one.value is not None:
            variables[one.name] = one.value
    return Given(file, directory, "" if home == "~" else home, variables, _maps(arguments.map or ()))


def _variables(files: Sequence[str]) -> "tuple[list[Variable], list[Any]]":
    from gpud.cli.importing_files import read
    from gpud.importing.reading import decode, read_variables

    found: dict[str, Variable] = {}
    aside: list[Any] = []
    for file in files:
        variables, more = read_variables(decode(read(file), file), file)
        found |= {one.name: one for one in variables}
        aside += more
    return list(found.values()), aside


def _maps(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    maps: dict[str, str] = {}
    for text in given:
        inside, equals, outside = text.partition("=")
        if not equals or not inside.startswith("/") or not outside.startswith("/"):
            raise Usage(f'import: --map "{text}" is not INSIDE=OUTSIDE', hint="like /models=/srv/models, both in full")
        maps[inside.rstrip("/") or "/"] = outside
    return tuple(sorted(maps.items(), key=lambda pair: -len(pair[0])))


def _of_ollama(arguments: Namespace) -> "Draft":
    from gpud.cli.importing_files import find_store, read_store
    from gpud.importing import ollama

    files = [*([arguments.file] if arguments.file else []), *(arguments.environment or ())]
    variables, aside = _variables(files)
    named = next((one.value for one in variables if one.name == "OLLAMA_MODELS" and one.value), "")
    store = find_store(arguments.models or named, asked=bool(arguments.models))
    if not store and not files:
        raise GpudError(
            "cannot import from Ollama: there is no store in the usual places, and no file with variables was named",
            hint="--models DIR says where its models are, --environment FILE where its variables are",
        )
    stored = read_store(Path(store)) if store else ()
    given = _given(arguments, files[0] if files else store)
    return ollama.draft(variables, aside, stored, given, store=store, engine=arguments.engine or "ollama")


# What is said ---------------------------------------------------------------------------------------------------------


def _sections() -> "tuple[tuple[Fate, str, str], ...]":
    from gpud.importing.report import Fate

    return (
        (Fate.CARRIED, "carried over", "carried over"),
        (Fate.NEEDLESS, "not needed by gpud", "not needed"),
        (Fate.CHANGED, "to be looked at", "carried over, to be looked at"),
        (Fate.DROPPED, "not carried over", "not carried over"),
    )


def _lines(report: "Report", *, everything: bool) -> list[str]:
    from gpud.importing.report import Fate

    counts = [f"{len(notes)} {what}" for fate, what, _ in _sections() if (notes := report.of(fate))]
    models = plural(len(report.config.get("models", {})), "model")
    lines = [f"{report.kind}, {report.file}: {models}; settings: {', '.join(counts) or 'none'}"]
    for fate, _, title in _sections():
        notes = report.of(fate)
        if notes and (everything or fate in (Fate.CHANGED, Fate.DROPPED)):
            lines += ["", f"{title}:", *(line for note in notes for line in _of(note))]
    return lines


def _of(note: "Note") -> list[str]:
    where = f" → {note.key}" if note.key else ""
    why = f": {note.why}" if note.why else ""
    lines = [f"  {note.place}: {note.setting}{where}{why}"]
    return [*lines, f"      instead: {note.instead}"] if note.instead else lines


def _as_data(report: "Report", target: str) -> dict[str, Any]:
    return {
        "kind": report.kind,
        "file": report.file,
        "output": target,
        "models": list(report.config.get("models", {})),
        "counts": {str(fate): len(report.of(fate)) for fate, _, _ in _sections()},
        "notes": [
            {
                "file": note.where.file,
                "line": note.where.line or None,
                "column": note.where.column or None,
                "setting": note.setting,
                "fate": str(note.fate),
                "key": note.key,
                "why": note.why,
                "instead": note.instead,
            }
            for note in report.notes
        ],
        "config": report.config,
        "yaml": report.text,
    }
