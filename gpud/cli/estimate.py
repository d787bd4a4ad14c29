"""``gpudctl estimate``: what a model file would take, by an engine's own word or calculated, without the daemon."""

import os
import re
import shutil
from argparse import Namespace
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser, whole
from gpud.cli.exits import DONE, Usage
from gpud.cli.output import Output, mib, size, table
from gpud.core.counts import plural
from gpud.core.errors import ConfigInvalid, GpudError
from gpud.core.quote import Estimate, Part, Source
from gpud.core.record import Record, replace
from gpud.core.vendors import NVIDIA, VENDORS

if TYPE_CHECKING:
    from gpud.core.modelfile import ModelFile
    from gpud.core.plan import Plan

DESCRIPTION = """\
Estimate how much memory a model needs on each device: weights, keys and
values, recurrent state, and buffers. ARGS are llama-server's own arguments. If
there is a llama-server, gpudctl starts it as for a load and ends it as soon as
it has reported what it is about to allocate, before it reads any weights.
Otherwise gpudctl calculates the estimate from the header of the file. The
driver takes 100 to 600 MiB more on each GPU. gpud need not be running."""

EXAMPLES = (
    "gpudctl estimate qwen3-8b-q4_k_m.gguf",
    "gpudctl estimate model.gguf --json -- -c 16384 -np 2 -ctk q8_0 -ctv q8_0 -ngl 30",
    "gpudctl estimate model.gguf --formula --gpus 2 -- -c 32768 -ts 3,1",
)

MOST_GPUS = 64

OTHER_MODELS = (
    *("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo"),
    *("--models-dir", "--models-preset"),
)
"""Flags with which llama-server would take its model from elsewhere."""

OTHER_ENDS = ("-h", "--help", "--usage", "--version", "--list-devices", "-cl", "--cache-list", "--completion-bash")
"""Flags with which it loads nothing at all."""

NVIDIA_GPUS = "/proc/driver/nvidia/gpus"


class NoEstimate(GpudError):
    code = "no-estimate"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL.gguf", help="model file; for a model in parts, the first")
    parser.add_argument("--formula", action="store_true", help="calculate; do not start llama-server")
    parser.add_argument(
        "--gpus", metavar="N", type=whole(0, MOST_GPUS), help="number of GPUs (default: those of this machine)"
    )
    parser.add_argument(
        "--binary", metavar="PATH", help="llama-server to ask (default: the configured one, or that in PATH)"
    )
    parser.add_argument("arguments", metavar="ARGS", nargs="*", help="arguments of llama-server, after --")


class Files(Record):
    """The model and what is loaded beside it."""

    model: "ModelFile"
    draft: "ModelFile | None"
    mmproj: "ModelFile | None"
    adapter_bytes: int


class Found(Record):
    """``calculated`` is what the formula says where another source decides; ``note`` says what was not done and why."""

    estimate: Estimate
    calculated: Estimate | None = None
    note: str = ""
    program: str = ""


def run(arguments: Namespace, output: Output) -> int:
    if arguments.formula and arguments.binary:
        raise Usage("estimate: --formula asks no llama-server, but --binary names one", hint="leave one of them out")
    given = tuple(arguments.arguments)
    environment = dict(os.environ)
    gpus = visible_gpus(environment) if arguments.gpus is None else arguments.gpus
    plan = plan_for(arguments.model, given, gpus, environment)
    files = read_files(plan)
    plan, given = settled(plan, given, files.model, environment)
    program = "" if arguments.formula else find_program(arguments.binary or "", arguments.bus)
    found = ask(files, plan, given, program, arguments.gpus, environment) if program else calculated(files, plan)
    show(found, files.model, output)
    return DONE


def plan_for(model: str, given: tuple[str, ...], gpus: int, environment: Mapping[str, str]) -> "Plan":
    """What the arguments say. Raises Usage, InvalidArguments."""
    from gpud.backends.llama_plan import plan_of

    for word in given:
        name = word.partition("=")[0]
        if name in OTHER_MODELS:
            raise Usage(f"estimate: {name} names a different model than {model}", hint=f"leave out {name}")
        if name in OTHER_ENDS:
            raise Usage(f"estimate: with {name} llama-server loads nothing", hint=f"leave out {name}")
    named = plan_of(given, gpus).file
    if named and Path(named) != Path(model):
        raise Usage(f"estimate: two models, {model} and {named}", hint="name the model once, before --")
    return replace(plan_of(given, gpus, environment), file=model)


def settled(
    plan: "Plan", given: tuple[str, ...], model: "ModelFile", environment: Mapping[str, str]
) -> tuple["Plan", tuple[str, ...]]:
    """With a context for slots that have a cache each, where none was given.

    llama-server then gives each what the model was trained with, unless fitting is off: then they share that.
    """
    trained = model.values.get(f"{model.architecture}.context_length")
    if plan.context or not isinstance(trained, int) or (plan.parallel or 1) == 1 or plan.unified:
        return plan, given
    fits = environment.get("LLAMA_ARG_FIT", "on")
    for word, value in pairwise(given):
        fits = value if word in ("-fit", "--fit") else fits
    context = trained if fits in ("off", "0", "false", "disabled") else trained * (plan.parallel or 1)
    return replace(plan, context=context), (*given, "--ctx-size", str(context))


def read_files(plan: "Plan") -> Files:
    """Raises BackendFailed for what cannot be read."""
    from gpud.catalog import gguf

    return Files(
        model=gguf.read(Path(plan.file)),
        draft=gguf.read(Path(plan.draft.file)) if plan.draft is not None else None,
        mmproj=gguf.read(Path(plan.mmproj)) if plan.mmproj else None,
        adapter_bytes=sum(_size_of(path) for path in plan.adapters),
    )


def _size_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as problem:
        raise NoEstimate(
            f"cannot read the adapter {path}: {problem.strerror} (errno {problem.errno})", hint="correct its path"
        ) from None


def find_program(binary: str, bus: str) -> str:
    """The llama-server to ask, or empty where there is none. Raises NoEstimate for one that is named and not there."""
    if not binary:
        return _configured(bus) or shutil.which("llama-server") or ""
    found = shutil.which(str(Path(binary).expanduser()) if "/" in binary else binary)
    if found is not None:
        return found
    what = "cannot be executed" if Path(binary).expanduser().exists() else "does not exist"
    raise NoEstimate(f"cannot ask {binary}: it {what}", hint="correct --binary, or use --formula")


def _configured(bus: str) -> str:
    """The configuration is only a place to look at: one that cannot be used is another command's affair."""
    from gpud.cli.config import chosen_path, engines

    path = chosen_path(bus)
    if not path.exists():
        return ""
    from gpud.config import load

    try:
        settings = load(path, known_engines=engines()).engines.get("llama_server")
    except (ConfigInvalid, OSError):
        return ""
    return (shutil.which(settings.binary) or "") if settings is not None and settings.binary else ""


def visible_gpus(environment: Mapping[str, str]) -> int:
    """How many GPUs of this machine an engine would see, as far as that can be told without waking one."""
    nvidia = sum(1 for _ in _entries(NVIDIA_GPUS))
    if nvidia:
        return _shown(environment, NVIDIA.visible, nvidia)
    cards = [entry for entry in _entries("/sys/class/drm") if re.fullmatch(r"card\d+", entry.name)]
    makers = [_text(card / "device/vendor") for card in cards]
    # Cards of NVIDIA's are there in /sys, too, without the driver that could use them.
    others = (vendor for vendor in VENDORS if vendor is not NVIDIA)
    return sum(
        min(_shown(environment, name, makers.count(vendor.pci)) for name in (vendor.visible, *vendor.obeys))
        for vendor in others
    )


def _entries(folder: str) -> list[Path]:
    try:
        return list(Path(folder).iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _shown(environment: Mapping[str, str], name: str, count: int) -> int:
    listed = environment.get(name)
    if listed is None:
        return count
    names = [word.strip() for word in listed.split(",")]
    # The list ends at the first that is not there.
    end = next((index for index, word in enumerate(names) if word in ("", "-1")), len(names))
    return min(count, end)


# Two ways ------------------------------------------------------------------------------------------------------------


def calculated(files: Files, plan: "Plan", note: str = "") -> Found:
    return Found(calculate(files, plan), note=note)


def calculate(files: Files, plan: "Plan") -> Estimate:
    """By the formula. Raises UnknownArchitecture."""
    from gpud.core.estimate import estimate

    return estimate(files.model, plan, draft=files.draft, mmproj=files.mmproj, adapter_bytes=files.adapter_bytes)


def ask(
    files: Files,
    plan: "Plan",
    given: tuple[str, ...],
    program: str,
    wanted_gpus: int | None,
    environment: Mapping[str, str],
) -> Found:
    """By the engine's own word; by the formula where the engine cannot be asked that without harm."""
    formula = _if_known(files, plan)
    if plan.gpus and keeps_state(files.model, formula):
        if formula is None:
            raise NoEstimate(
                f'cannot tell what a "{files.model.architecture}" model needs on a GPU: the formula does not know it, '
                "and a dry run would really allocate its state there",
                hint="use --gpus 0 to estimate it as a whole",
            )
        return Found(formula, note="llama-server was not asked: a dry run would really allocate the state on the GPU")
    told = _told(plan, given, program, _seeing(environment, wanted_gpus))
    gpus = sum(1 for part in told.parts if part.gpu is not None)
    if wanted_gpus is not None and gpus < plan.gpus:
        note = f"calculated for {plural(plan.gpus, 'GPU')}: {program} sees {gpus or 'none'} here"
        return calculated(files, plan, note)
    if gpus != plan.gpus:
        formula = _if_known(files, replace(plan, gpus=gpus))
    told = replace(told, architecture=files.model.architecture)
    return Found(told if formula is None else with_state(told, formula), formula, program=program)


def _if_known(files: Files, plan: "Plan") -> Estimate | None:
    from gpud.core.estimate import UnknownArchitecture

    try:
        return calculate(files, plan)
    except UnknownArchitecture:
        return None


def keeps_state(model: "ModelFile", formula: Estimate | None) -> bool:
    """Whether it is recurrent, wholly or in part: as the formula knows, or as its metadata look."""
    if formula is not None:
        return any(part.state_bytes for part in formula.parts)
    marks = ("ssm.", "wkv_head_size", "shortconv.", "kda.")
    return any(key.partition(".")[2].startswith(marks) for key in model.values)


def _seeing(environment: Mapping[str, str], gpus: int | None) -> Mapping[str, str]:
    """An environment in which an engine sees only so many GPUs."""
    from gpud.backends import devices

    if gpus is None:
        return environment
    if gpus == 0:
        return {**environment, **devices.NOTHING_VISIBLE}
    shown = dict(environment)
    for vendor in VENDORS:
        named = [word for word in environment.get(vendor.visible, "").split(",") if word]
        shown[vendor.visible] = ",".join((named or [str(number) for number in range(gpus)])[:gpus])
    return shown


def _told(plan: "Plan", given: tuple[str, ...], program: str, environment: Mapping[str, str]) -> Estimate:
    from tempfile import TemporaryDirectory

    from gpud.backends.llama_probe import DryRun

    # With a short name: the path of a socket has room for a hundred letters.
    with TemporaryDirectory(prefix="gpud-") as folder:
        dry_run = DryRun((program,), plan.file, given, environment, plan)
        return dry_run.ask(Path(folder))


def with_state(told: Estimate, formula: Estimate) -> Estimate:
    """The record has one sum for keys, values and states; the formula knows how large the states are in it."""
    states = {part.gpu: part.state_bytes for part in formula.parts}

    def split(part: Part) -> Part:
        state = min(states.get(part.gpu, 0), part.kv_bytes)
        return replace(part, kv_bytes=part.kv_bytes - state, state_bytes=state)

    return replace(
        told,
        parts=tuple(split(part) for part in told.parts),
        context=told.context or formula.context,
        layers=told.layers or formula.layers,
    )


# What is shown -------------------------------------------------------------------------------------------------------


def show(found: Found, model: "ModelFile", output: Output) -> None:
    output.result("\n".join(sentences(found, model, output)), as_data(found))
    if found.note:
        output.note(f"gpudctl: {found.note}")


def as_data(found: Found) -> dict[str, Any]:
    estimate = found.estimate
    data: dict[str, Any] = {
        "architecture": estimate.architecture,
        "devices": [
            {
                "name": part.device,
                "weights_bytes": part.weights_bytes,
                "kv_bytes": part.kv_bytes,
                "state_bytes": part.state_bytes,
                "compute_bytes": part.compute_bytes,
                "total_bytes": part.total_bytes,
            }
            for part in estimate.parts
        ],
        "total_bytes": estimate.total_bytes,
        "source": str(estimate.source),
    }
    if found.calculated is not None:
        data["formula_bytes"] = found.calculated.total_bytes
    return data


def sentences(found: Found, model: "ModelFile", output: Output) -> list[str]:
    estimate = found.estimate
    context = f", {plural(estimate.context, 'token')} of context" if estimate.context else ""
    head = f"{estimate.architecture}: {size(model.size_bytes)} on disk{context}"
    titles = ("DEVICE", "WEIGHTS", "KEYS AND VALUES", "STATE", "BUFFERS", "TOTAL")
    rows = [
        (
            part.device,
            *(_amount(each) for each in (part.weights_bytes, part.kv_bytes, part.state_bytes, part.compute_bytes)),
            mib(part.total_bytes),
        )
        for part in estimate.parts
    ]
    lines = [head, "", *table(output, titles, [[(cell, "") for cell in row] for row in rows]), ""]
    source = f"as {found.program} says" if estimate.source is Source.PROBE else "as calculated from its header"
    lines.append(f"{size(estimate.total_bytes)} in all, {source}")
    if found.calculated is not None:
        lines.append(_compared(estimate.total_bytes, found.calculated.total_bytes))
    elif estimate.source is Source.PROBE:
        lines.append(f'the formula does not know "{estimate.architecture}" models')
    return lines


def _amount(size_bytes: int) -> str:
    return mib(size_bytes) if size_bytes else ""


def _compared(told_bytes: int, calculated_bytes: int) -> str:
    difference = calculated_bytes - told_bytes
    if abs(difference) < 1 << 20:
        return "the formula says the same"
    share = f" ({abs(difference) / told_bytes:.1%})" if told_bytes else ""
    other = "more" if difference > 0 else "less"
    return f"the formula says {size(calculated_bytes)}, {mib(abs(difference))}{share} {other}"
