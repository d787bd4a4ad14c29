"""``gpudctl pull``: downloads a model from Hugging Face's hub, or has Ollama download one."""

import asyncio
from argparse import Namespace
from typing import TYPE_CHECKING, Any, NamedTuple

from gpud.cli.arguments import Parser, some_path, whole
from gpud.cli.exits import DONE, Usage
from gpud.cli.output import Output, size
from gpud.core.counts import plural
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud
    from gpud.cli.downloading.fits import Row
    from gpud.cli.downloading.process import Puller

DESCRIPTION = """\
Download a model. hf:ORG/REPO:QUANTIZATION and hf:ORG/REPO/FILE name one model
of a Hugging Face repository. hf:ORG/REPO shows all of its models, with what
each needs and whether it fits, and asks you to choose. A repository in
safetensors goes as a whole into the Hugging Face cache. ollama:NAME makes
Ollama download the model.
The download runs as you, with your proxies (HTTPS_PROXY) and your token
(HF_TOKEN, or "hf auth login"), into a folder that you can write and that gpud
scans. Run the same command again to continue an interrupted download. The
download is shown as a job in "gpudctl status"; "gpudctl cancel" ends it."""

EXAMPLES = (
    "gpudctl pull hf:Qwen/Qwen3-8B-GGUF              # what there is, and what fits",
    "gpudctl pull hf:Qwen/Qwen3-8B-GGUF:Q4_K_M",
    "gpudctl pull hf:Qwen/Qwen3-8B-GGUF --yes        # the recommended one",
    "gpudctl pull hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M --mmproj",
    "gpudctl pull hf:Qwen/Qwen3-8B                   # safetensors, for vLLM and TGI",
    "gpudctl pull ollama:llama3.2:3b",
)

SAFETENSORS = "safetensors"


class Wish(NamedTuple):
    """What was asked for. ``wanted`` is a quantization or a file; empty: nothing was said."""

    repo: str
    wanted: str


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hf:ORG/REPO, with :QUANTIZATION or /FILE, or ollama:NAME[:TAG]")
    parser.add_argument(
        "--to", type=some_path, metavar="DIR", help="target folder (default: the first of gpud's that you can write)"
    )
    parser.add_argument("--mmproj", action="store_true", help="also download what the model needs to see images")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repository (default: main)")
    parser.add_argument(
        "--context", metavar="N", type=whole(1, (1 << 32) - 1), help="check what fits with N tokens of context"
    )
    parser.add_argument("--yes", action="store_true", help="download the recommended model without asking")
    parser.add_argument("--force", action="store_true", help="replace a different file of the same name")
    parser.add_argument("--url", metavar="URL", help="gpud's door for Ollama clients (default: as configured)")
    parser.add_argument(
        "--key-file", metavar="FILE", help="file with the API key for that door (default: GPUD_API_KEY)"
    )


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli.downloading.bringing import told

    return told(lambda: pull(arguments, output), output)


def pull(arguments: Namespace, output: Output) -> int:
    from gpud.cli.downloading.bringing import finished

    kind, _, name = arguments.model.partition(":")
    if kind == "ollama":
        from gpud.cli.downloading import ollama

        return finished(ollama_model(ollama.checked_name(name), arguments, output))
    if kind == "hf":
        return finished(hub_model(parsed(name), arguments, output))
    raise Usage(
        f'pull: "{arguments.model[:200]}" does not name a source',
        hint='write hf:ORG/REPO or ollama:NAME; "gpudctl fetch" downloads from a URL',
    )


def parsed(name: str) -> Wish:
    """``org/repo``, ``org/repo:quantization``, ``org/repo/folder/file.gguf``. Raises Usage."""
    before, _, quantization = name.partition(":")
    parts = before.split("/", 2)
    file = parts[2] if len(parts) == 3 else ""
    if len(parts) < 2 or not parts[0] or not parts[1] or (file and quantization) or name.endswith((":", "/")):
        raise Usage(
            f'pull: "hf:{name[:200]}" does not name a repository',
            hint="write hf:ORG/REPO, hf:ORG/REPO:QUANTIZATION or hf:ORG/REPO/FILE",
        )
    return Wish(f"{parts[0]}/{parts[1]}", file or quantization)


# From Hugging Face ---------------------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """What there is to choose from, and what fits."""

    listing: dict[str, Any]
    rows: "list[Row]"
    kind: str
    """Of the gpud that runs: ``system``, ``user``, or empty."""


async def hub_model(wish: Wish, arguments: Namespace, output: Output) -> int:
    from gpud.cli.downloading import folders
    from gpud.cli.downloading.bringing import brought
    from gpud.cli.downloading.job import connected
    from gpud.cli.downloading.process import Puller

    if arguments.to:
        # Before anybody is asked anything.
        folders.usable(arguments.to)
    gpud = await connected(arguments.bus)
    try:
        async with Puller() as puller:
            seen = await looked(puller, gpud, wish, arguments)
            if wants_safetensors(wish, seen):
                what, ask = snapshot(seen, arguments)
            else:
                what, ask = files_of(seen, choose(wish, seen, arguments, output), arguments)
            return await brought(what, ask, puller, gpud, output)
    finally:
        if gpud is not None:
            gpud.close()


async def looked(puller: "Puller", gpud: "Gpud | None", wish: Wish, arguments: Namespace) -> Picture:
    """Ask the hub what there is, and gpud what there is room for."""
    import tempfile

    from gpud.cli.downloading import fits

    devices = (await gpud.overview())["Gpus"] if gpud is not None else []
    kind = gpud.kind if gpud is not None else ""
    wanted = "" if wish.wanted == SAFETENSORS else wish.wanted
    ask = {"do": "list", "repo": wish.repo, "revision": arguments.revision or "main", "wanted": wanted}
    told = await puller.answer(ask)
    listing, meant = told["listing"], told["meant"]
    complete = [choice for choice in meant if not choice["missing"]]
    with tempfile.TemporaryDirectory(prefix="gpud-pull-") as folder:
        header = None
        # Of one that is named nobody asks what it needs.
        if len(meant) > 1 and complete:
            base = complete[len(complete) // 2]
            path = await _header(puller, listing, base, folder)
            header = None if path is None else (base, path)
        context = arguments.context or _usual_context(kind)
        rows = await asyncio.to_thread(fits.rows, meant, header, context, _gpus(devices), devices)
    return Picture(listing, rows, kind)


async def _header(puller: "Puller", listing: dict[str, Any], choice: dict[str, Any], folder: str) -> str | None:
    """The header of one of them, which says what all of them need; None where it cannot be had: sizes say enough."""
    ask = {"do": "header", "repo": listing["repo"], "commit": listing["commit"], "folder": folder}
    try:
        return str((await puller.answer({**ask, "files": choice["files"]}))["path"])
    except GpudError:
        return None


def _gpus(devices: list[dict[str, Any]]) -> int:
    if devices:
        return sum(gpu["Uuid"] != "host" and not gpu["Health"] for gpu in devices)
    import os

    from gpud.cli.estimate import visible_gpus

    return visible_gpus(os.environ)


def _usual_context(kind: str) -> int:
    """What gpud gives a model that it finds."""
    from contextlib import suppress

    from gpud.cli.config import chosen_path
    from gpud.cli.downloading.fits import USUAL_CONTEXT
    from gpud.config import load
    from gpud.core.errors import ConfigInvalid

    path = chosen_path(kind)
    with suppress(ConfigInvalid, OSError):
        if path.exists():
            return load(path).registry.most_context
    return USUAL_CONTEXT


def wants_safetensors(wish: Wish, seen: Picture) -> bool:
    if wish.wanted == SAFETENSORS and not seen.listing["safetensors"]:
        raise GpudError(f'"{wish.repo}" has no model in safetensors', hint="leave :safetensors out to see what it has")
    return bool(seen.listing["safetensors"]) and (
        wish.wanted == SAFETENSORS or (not wish.wanted and not seen.listing["choices"])
    )


def choose(wish: Wish, seen: Picture, arguments: Namespace, output: Output) -> dict[str, Any]:
    """The one that is meant. Raises GpudError, Usage where nobody can be asked."""
    if not seen.rows:
        raise _nothing(wish, seen.listing)
    if len(seen.rows) == 1:
        return _complete(seen.rows[0], wish)
    from gpud.cli.downloading import fits

    chosen = fits.recommended(seen.rows)
    if wish.wanted:
        names = ", ".join(row.choice["files"][0]["path"] for row in seen.rows[:10])
        raise Usage(
            f'pull: {len(seen.rows)} models of "{wish.repo}" are "{wish.wanted}": {names}', hint="name its file"
        )
    if arguments.yes and chosen is not None:
        if not output.wants_json:
            output.note(f"taking {chosen.label}, the recommended one")
        return _complete(chosen, wish)
    _show(wish, seen, chosen, output)
    if arguments.yes:
        raise GpudError(
            f'none of "{wish.repo}" fits this machine completely',
            hint="name one after the repository if it may be slow",
        )
    return _asked(wish, seen, chosen, output)


def _show(wish: Wish, seen: Picture, chosen: "Row | None", output: Output) -> None:
    from gpud.cli.downloading import fits
    from gpud.cli.downloading.shown import line

    if output.wants_json:
        line(output, event="choices", repo=wish.repo, choices=[row.as_data(chosen) for row in seen.rows])
        return
    output.text("\n".join(fits.lines(seen.rows, chosen, output)))
    context = seen.rows[0].way.context
    known = any(row.ever is not None for row in seen.rows)
    about = f"needs are with a context of {plural(context, 'token')}" if context else "needs are without any context"
    output.text("")
    output.text(about + ("" if known else "; what fits is unknown, because gpud is not running"))
    if seen.listing["safetensors"]:
        total = sum(file["size_bytes"] for file in seen.listing["safetensors"])
        output.text(f"the same repository has {size(total)} in safetensors: hf:{wish.repo}:{SAFETENSORS}")


def _asked(wish: Wish, seen: Picture, chosen: "Row | None", output: Output) -> dict[str, Any]:
    from gpud.cli.client import interactive

    example = (chosen or seen.rows[0]).label
    if output.wants_json or not interactive():
        raise Usage(
            f'pull: {plural(len(seen.rows), "model")} of "{wish.repo}" match, and there is no terminal to ask',
            hint=f"name one: hf:{wish.repo}:{example}; or --yes for the recommended one",
        )
    default = f" [{chosen.label}]" if chosen is not None else ""
    while True:
        try:
            answer = _typed(f"which one?{default} ") or (chosen.label if chosen is not None else "")
        except EOFError:
            raise Usage("pull: none was chosen", hint=f"name one: hf:{wish.repo}:{example}") from None
        found = [row for row in seen.rows if answer.lower() in (row.label.lower(), row.choice["stem"].lower())]
        if len(found) == 1:
            return _complete(found[0], wish)
        output.note(f'"{answer}" is none of them' if not found else f'"{answer}" is more than one: write its file')


def _typed(question: str) -> str:
    """What somebody types. Ctrl-C ends it at once: nothing else goes on meanwhile that would have to be canceled."""
    import signal

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(question).strip()
    finally:
        signal.signal(signal.SIGINT, before)


def _complete(row: "Row", wish: Wish) -> dict[str, Any]:
    if row.choice["missing"]:
        missing = plural(row.choice["missing"], "part")
        raise GpudError(
            f'"{wish.repo}" lacks {missing} of "{row.choice["stem"]}": no engine could load it',
            hint="choose another one",
        )
    return row.choice


def _nothing(wish: Wish, listing: dict[str, Any]) -> GpudError:
    if wish.wanted and listing["choices"]:
        labels = ", ".join(choice["label"] for choice in listing["choices"][:20])
        return GpudError(f'"{wish.repo}" has no "{wish.wanted}"', hint=f"it has {labels}")
    return GpudError(
        f'"{wish.repo}" has no model that gpud could load: neither GGUF files nor safetensors with a config.json',
        hint="look for a repository whose name ends in GGUF",
    )


def files_of(seen: Picture, chosen: dict[str, Any], arguments: Namespace) -> tuple[str, dict[str, Any]]:
    """What to call the download, and the wish: the files of a model, under their own names."""
    from gpud.cli.downloading import folders

    listing, files = seen.listing, [*chosen["files"]]
    folder = folders.target(arguments.to or "", seen.kind)
    if arguments.mmproj:
        if not listing["projectors"]:
            raise GpudError(f'"{listing["repo"]}" has no file that lets a model see images', hint="leave --mmproj out")
        files.append(listing["projectors"][0])
        # Every repository calls it the same, so that both need a folder of their own to belong together.
        folder = folder / listing["repo"].partition("/")[2]
        folder.mkdir(exist_ok=True)
    about = _about(listing, files, arguments)
    return f"hf:{listing['repo']}/{files[0]['path']}", {**about, "do": "pull", "folder": str(folder)}


def snapshot(seen: Picture, arguments: Namespace) -> tuple[str, dict[str, Any]]:
    """The same for a whole repository."""
    from gpud.cli.downloading import folders

    folder = folders.cache(arguments.to or "", seen.kind)
    about = _about(seen.listing, seen.listing["safetensors"], arguments)
    return f"hf:{seen.listing['repo']}", {**about, "do": "snapshot", "folder": folder}


def _about(listing: dict[str, Any], files: list[dict[str, Any]], arguments: Namespace) -> dict[str, Any]:
    about = {name: listing[name] for name in ("repo", "revision", "commit")}
    return {**about, "files": files, "force": arguments.force}


# Through Ollama ------------------------------------------------------------------------------------------------------


async def ollama_model(name: str, arguments: Namespace, output: Output) -> int:
    from gpud.cli.downloading import ollama
    from gpud.cli.downloading.following import Following
    from gpud.cli.downloading.job import Job, connected
    from gpud.cli.downloading.shown import line

    for option in ("to", "mmproj", "revision", "context", "force"):
        if getattr(arguments, option):
            raise Usage(f"pull: --{option} is for Hugging Face; Ollama decides this by itself", hint="leave it out")
    door = ollama.door(arguments)
    gpud = await connected(arguments.bus)
    try:
        job = Job(gpud, f"ollama:{name}")
        following = Following(f"ollama:{name}", job, output)
        await following.run(ollama.pulled(door, name))
        await job.end("done", f"Ollama has downloaded {name}")
        names = await job.known_as([])
    finally:
        if gpud is not None:
            gpud.close()
    if output.wants_json:
        line(output, event="done", what=f"ollama:{name}", path=None, files=[], names=names)
    else:
        output.text(f'Ollama has "{name}"')
    return DONE
