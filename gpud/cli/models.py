"""``gpudctl models``: what models there are, what is known of them, and what somebody says of them."""

from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import PRIORITIES, Parser
from gpud.cli.exits import DONE, Usage
from gpud.cli.output import Output, since, size, span, table, visible
from gpud.cli.unload import LOADED
from gpud.core.counts import NONE_THERE, plural

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Without an action, list the names of the models that can be loaded, one per
line.
list: show all models, or those named, with the contents of their files and the
memory that they need.
info: show everything about one model.
scan: look for models on disk now; in local folders, gpud notices changes by
itself.
set-priority, tag, untag, alias, unalias, note: set a property of a model,
which stays until it is changed.
rm: unload a model and delete its files, with your own permissions.
forget: delete the record of a model that no longer exists."""

EXAMPLES = (
    "gpudctl models list",
    "gpudctl models info qwen3-8b",
    "gpudctl models --loaded | xargs -n 1 gpudctl log -n 5",
    "gpudctl models tag qwen3-8b chat german",
    "gpudctl models alias qwen3-8b best",
    "gpudctl models set-priority qwen3-8b high      # default restores the configured one",
    "gpudctl --json models list | jq -r '.[] | select(.estimate_bytes < 6e9) | .name'",
)

CONFIGURED = "default"
"""As a priority: the one that the configuration says."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=NAMES, nargs="?", metavar="ACTION", help=", ".join(NAMES))
    parser.add_argument("model", metavar="MODEL", nargs="?", help="name or alias of a model")
    parser.add_argument("words", metavar="WORD", nargs="*", help="priority, tags, aliases or note")
    parser.add_argument("--loaded", action="store_true", help="only models that are loaded, loading or unloading")
    parser.add_argument("--aliases", action="store_true", help="without an action: list the aliases, too")
    parser.add_argument("--tag", metavar="TAG", help="list: only models with this tag")
    parser.add_argument("--all", action="store_true", help="list: include adapters and models that cannot be loaded")
    parser.add_argument("--yes", "-y", action="store_true", help="rm: do not ask for confirmation")


WITH_WORDS = ("list", "tag", "untag", "alias", "unalias", "note", "set-priority")
"""The actions that take more than one name."""

OPTIONS = {
    "loaded": ("--loaded", ("", "list")),
    "aliases": ("--aliases", ("",)),
    "tag": ("--tag", ("list",)),
    "all": ("--all", ("list",)),
    "yes": ("--yes", ("rm",)),
}
"""With which actions each option means something; no action at all is empty."""


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    action: str = arguments.action or ""
    _check(action, arguments)
    if action == "rm":
        from gpud.cli.removal import remove

        return remove(arguments, output)
    work = ACTIONS[action] if action else names
    return client.run(lambda gpud: work(gpud, arguments, output), arguments.bus)


def _check(action: str, arguments: Namespace) -> None:
    """Raises Usage for words and options that do not go with the action."""
    for key, (option, actions) in OPTIONS.items():
        if getattr(arguments, key) and action not in actions:
            where = " or ".join(f'"{" ".join(("gpudctl models", one)).rstrip()}"' for one in actions)
            raise Usage(f"models: {option} does not go with {action or 'no action'}", hint=f"it belongs to {where}")
    if action and action not in ("list", "scan") and not arguments.model:
        raise Usage(f"models: {action} needs the name of a model", hint='"gpudctl models" lists the names')
    if action == "scan" and arguments.model:
        raise Usage("models: scan takes no name", hint="it scans for all models; leave the name out")
    if arguments.words and action not in WITH_WORDS:
        raise Usage(f'models: {action} takes one name, not "{arguments.words[0]}" too', hint="run it for each of them")
    if action in ("tag", "untag", "alias", "unalias") and not arguments.words:
        raise Usage(f"models: {action} needs one word at least", hint=f"gpudctl models {action} {arguments.model} WORD")
    if action == "set-priority" and (len(arguments.words) != 1 or arguments.words[0] not in (*PRIORITIES, CONFIGURED)):
        given = f', and "{" ".join(arguments.words)}" is none' if arguments.words else ""
        hint = f"one of {', '.join((*PRIORITIES, CONFIGURED))}"
        raise Usage(f"models: set-priority needs one priority{given}", hint=hint)


async def names(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    """One a line, for people and for shell loops."""
    records = [one for one in await gpud.models() if not arguments.loaded or one["State"] in LOADED]
    words = [name for one in records for name in (one["Id"], *(one["Aliases"] if arguments.aliases else ()))]
    data = [{"id": one["Id"], "aliases": one["Aliases"], "state": one["State"]} for one in records]
    output.result("\n".join(words), {"models": data})
    if not words and not arguments.loaded and not output.wants_json:
        output.note(NONE_THERE)
    return DONE


# Seeing --------------------------------------------------------------------------------------------------------------


async def catalog(gpud: "Gpud", wanted: list[str]) -> list[dict[str, Any]]:
    """What is known of these models, or of all."""
    from gpud.cli.client import plain

    (records,) = await gpud.call("ListCatalog", "as", wanted)
    return [plain(record) for record in records]


def joined(known: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    """One model as programs see it: what it is, and how it stands."""
    return {
        "name": known["Id"],
        "id": known["Number"],
        "aliases": list(dict.fromkeys((*status.get("Aliases", ()), *known["Aliases"]))),
        "path": known["Path"],
        "paths": known["Paths"],
        "sources": known["Sources"],
        "format": known["Format"],
        "engine": status.get("Backend", ""),
        "architecture": known["Architecture"],
        "quantization": known["Quantization"],
        "parameters": known["Parameters"],
        "purpose": known["Purpose"],
        "size_bytes": known["SizeBytes"],
        "context_length": status.get("ContextSize") or known["TrainedContext"],
        "trained_context": known["TrainedContext"],
        "estimate_bytes": status.get("NeedBytes") or known["EstimateBytes"],
        "state": status.get("State", ""),
        "priority": known["Priority"],
        "tags": known["Tags"],
        "notes": known["Notes"],
        "problem": known["Problem"],
        "configured": known["Configured"],
        "usage_count": known["UsageCount"],
        "last_used_usec": known["LastUsedUSec"],
        "load_usec": known["LoadUSec"],
        "mmproj": known["Mmproj"],
        "digest": known["Digest"],
    }


async def known_models(gpud: "Gpud", wanted: list[str]) -> list[dict[str, Any]]:
    found = await catalog(gpud, wanted)
    standing = await (gpud.models_named({known["Id"] for known in found}) if wanted else gpud.models())
    stand = {record["Id"]: record for record in standing}
    return [joined(known, stand.get(known["Id"], {})) for known in found]


async def show(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    wanted = [arguments.model, *arguments.words] if arguments.model else []
    found = await known_models(gpud, wanted)
    if not wanted and not arguments.all:
        found = [one for one in found if one["state"]]
    if arguments.loaded:
        found = [one for one in found if one["state"] in LOADED]
    if arguments.tag:
        found = [one for one in found if arguments.tag in one["tags"]]
    found.sort(key=lambda one: one["name"])
    if output.wants_json:
        output.json(found)
        return DONE
    if not found:
        output.text("there are no models" if not (arguments.tag or arguments.loaded) else "no model matches")
        if not (arguments.tag or arguments.loaded):
            output.note(_how_to_get_one(gpud.kind))
        return DONE
    head = (
        "NAME",
        "STATE",
        "ENGINE",
        "ARCHITECTURE",
        "QUANT",
        "PARAMETERS",
        "SIZE",
        "NEEDS",
        "CONTEXT",
        "USED",
        "TAGS",
    )
    rows = [
        [
            (one["name"], ""),
            (one["state"] if one["state"] != "unloaded" else "", "green" if one["state"] in LOADED else "red"),
            (one["engine"], ""),
            (visible(one["architecture"]), ""),
            (visible(one["quantization"]), ""),
            (visible(one["parameters"]), ""),
            (size(one["size_bytes"]) if one["size_bytes"] else "", ""),
            (size(one["estimate_bytes"]) if one["estimate_bytes"] else "", ""),
            (str(one["context_length"] or ""), ""),
            (since(one["last_used_usec"]), "dim"),
            (" ".join(one["tags"]) or (one["purpose"] if one["purpose"] != "completion" else ""), "dim"),
        ]
        for one in found
    ]
    output.text("\n".join(table(output, head, rows)))
    for one in found:
        if one["problem"]:
            output.note(f'"{one["name"]}" cannot be loaded: {visible(one["problem"])}')
    return DONE


def _how_to_get_one(kind: str) -> str:
    """``kind`` is of the gpud that has none."""
    from gpud.cli.config import chosen_path
    from gpud.cli.downloading.folders import looked_at

    looks = looked_at(kind)
    if looks.enabled and looks.folders:
        *most, last = map(visible, map(str, looks.folders))
        where = f"{', '.join(most)} or {last}" if most else last
        return f'copy a .gguf file to {where}, or see "gpudctl pull --help"'
    path = chosen_path(kind)
    if looks.enabled:
        return f"registry.paths is empty in {path}: name a folder there, or a model below models:, and gpudctl reload"
    return (
        f"registry.enable is false in {path}: gpud has only the models that are named below models: there. Name one, "
        "or have it look for them, and gpudctl reload"
    )


async def info(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    (one,) = await known_models(gpud, [arguments.model])
    if output.wants_json:
        output.json(one)
        return DONE
    facts = (
        ("aliases", ", ".join(one["aliases"])),
        ("state", one["state"]),
        ("engine", one["engine"]),
        ("files", "\n".join(map(visible, one["paths"]))),
        ("from", ", ".join(one["sources"])),
        ("format", one["format"]),
        ("architecture", visible(one["architecture"])),
        ("quantization", visible(one["quantization"])),
        ("parameters", visible(one["parameters"])),
        ("purpose", one["purpose"]),
        ("size", size(one["size_bytes"]) if one["size_bytes"] else ""),
        ("needs", size(one["estimate_bytes"]) if one["estimate_bytes"] else "not calculated yet"),
        ("context", _context(one)),
        ("projector", visible(one["mmproj"])),
        ("SHA-256", one["digest"]),
        ("priority", one["priority"] or "as configured"),
        ("tags", " ".join(one["tags"])),
        ("notes", "\n".join(map(visible, one["notes"].splitlines()))),
        (
            "used",
            f"{plural(one['usage_count'], 'time')}, {since(one['last_used_usec'])}" if one["usage_count"] else "never",
        ),
        ("last load", span(one["load_usec"] / 1e6) if one["load_usec"] else ""),
        ("configured", "in gpud.yaml" if one["configured"] else "no: it was found"),
        ("problem", visible(one["problem"])),
    )
    lines = [output.paint(one["name"], "bold")]
    for name, text in facts:
        for index, part in enumerate(text.splitlines()):
            lines.append(f"  {name if index == 0 else '':13} {part}")
    output.text("\n".join(lines))
    return DONE


def _context(one: dict[str, Any]) -> str:
    trained = one["trained_context"]
    text = str(one["context_length"] or "")
    return f"{text} of {trained} that it was trained for" if trained and text and str(trained) != text else text


async def scan(gpud: "Gpud", _arguments: Namespace, output: Output) -> int:
    from gpud.cli.client import plain
    from gpud.cli.status import as_data

    (result,) = await gpud.call("Scan", asks=True, bounded=False)
    found = plain(result)
    if output.wants_json:
        output.json(as_data(found))
        return DONE
    output.text(
        f"{plural(found['Models'], 'model')}; {plural(found['Files'], 'file')} looked at, {found['Read']} read, "
        f"in {found['ScanUSec'] / 1e6:.2f} s"
    )
    for word, key in (("new", "New"), ("gone", "Gone"), ("changed", "Changed")):
        if found[f"{key}Count"]:
            more = found[f"{key}Count"] - len(found[key])
            output.text(f"{word}: {', '.join(found[key])}" + (f" and {more} more" if more else ""))
    for path, problem in found["Problems"]:
        output.text(f"cannot be used: {visible(path)}: {visible(problem)}")
    if (more := found["ProblemCount"] - len(found["Problems"])) > 0:
        output.text(f"cannot be used: {more} more")
    return DONE


# Saying --------------------------------------------------------------------------------------------------------------


async def annotate(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    from gpud.cli.library import Variant

    action, words = arguments.action, list(arguments.words)
    (known,) = await catalog(gpud, [arguments.model])
    if action == "set-priority":
        key, value = "priority", Variant("s", "" if words[0] == CONFIGURED else words[0])
    elif action == "note":
        key, value = "notes", Variant("s", " ".join(words))
    else:
        key, record = ("tags", "Tags") if action in ("tag", "untag") else ("aliases", "Aliases")
        if action in ("tag", "alias"):
            kept = list(dict.fromkeys((*known[record], *words)))
        else:
            missing = [word for word in words if word not in known[record]]
            if missing:
                what = {"tags": "tag", "aliases": "alias"}[key]
                given = f"it has {', '.join(known[record])}" if known[record] else "it has none"
                raise Usage(f'"{known["Id"]}" does not have the {what} "{missing[0]}"', hint=given)
            kept = [word for word in known[record] if word not in words]
        value = Variant("as", kept)
    # A look at the disks that is under way ends first.
    await gpud.call("Annotate", "sa{sv}", known["Id"], {key: value}, asks=True, bounded=False)
    (one,) = await known_models(gpud, [known["Id"]])
    shown = "\n".join(map(visible, one[key].splitlines())) if isinstance(one[key], str) else ", ".join(one[key])
    fallback = {"priority": "as configured", "notes": "none", "tags": "none", "aliases": "none"}[key]
    output.result(f'{key} of "{one["name"]}": {shown or fallback}', {"name": one["name"], key: one[key]})
    return DONE


async def forget(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    await gpud.call("Forget", "s", arguments.model, asks=True, bounded=False)
    output.result(f'forgot "{arguments.model}"', {"forgotten": arguments.model})
    return DONE


ACTIONS: dict[str, Callable[["Gpud", Namespace, Output], Awaitable[int]]] = {
    "list": show,
    "info": info,
    "scan": scan,
    "set-priority": annotate,
    "tag": annotate,
    "untag": annotate,
    "alias": annotate,
    "unalias": annotate,
    "note": annotate,
    "forget": forget,
}
NAMES = (*ACTIONS, "rm")
"""The actions. What rm asks, it asks while nobody waits for the daemon."""
