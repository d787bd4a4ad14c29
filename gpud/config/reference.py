"""Writes what people read about the configuration from the table of keys: the shipped file and the manual's tables.

``.venv/bin/python -m gpud.config.reference`` renews them in the source tree; a test fails while they differ. The daemon
never imports this.
"""

import re
from pathlib import Path

from gpud.config.schema import DEFAULTS, ENGINE, MODEL, ROOT, sections
from gpud.config.sections import LLAMA, Key, Section
from gpud.core.engines import BUILT_IN

SHIPPED = Path("config/gpud.yaml")
MANUALS = (Path("docs/configuration.md"), Path("docs/man/gpud.yaml.5.md"))

_HEAD = """\
# The configuration of gpud. What may stand here is in gpud.yaml(5); "gpudctl config check" says what is wrong with it.
#
# Every key stands below at its default, commented out: take away the "#" in front of it, and of the key that it is
# indented under. null means unset. Files in gpud.d/ beside this one, *.yaml in the order of their names, are laid over
# it key by key. Lines that begin with "#|" are examples.
#
# One model needs three keys:
#
#|models:
#|  tiny:
#|    engine: embedded
#|    file: /var/lib/ml-models/llamacpp/models/tiny.gguf
"""


def shipped_file() -> str:
    """config/gpud.yaml: every key at its default, commented out, with the line that says what it does."""
    parts = [_HEAD]
    for key in ROOT.keys:
        if key.name == "models":
            parts += ["# The models, each under the name that clients ask for.\n#models: {}\n", _model_examples()]
        elif key.name == "engines":
            parts += [f"# {key.says}\n#engines: {{}}\n", _engine_examples()]
        else:
            parts.append("".join(f"#{line}\n" for line in _commented(key, "")).replace("## ", "# ", 1))
    return "\n".join(parts)


def _commented(key: Key, indent: str) -> list[str]:
    """A key as lines of YAML, its sentence above it; sections with all their keys."""
    if isinstance(key.kind, Section):
        lines = [f"{indent}# {key.says}", f"{indent}{key.name}:"]
        for inner in key.kind.keys:
            lines += _commented(inner, indent + "  ")
        return lines
    extra = f" Unset: {key.absent}." if key.absent and key.default is None else ""
    example = f" Example: {key.example}" if key.example and key.default is None else ""
    return [f"{indent}# {key.says}{extra}{example}", f"{indent}{key.name}: {key.default or 'null'}"]


def _model_examples() -> str:
    """Example models that together have every key that is not in ``defaults``."""
    examples = (
        ("tiny", "embedded", ("file", "aliases", "mmproj", "draft_file")),
        ("llama3", "ollama", ("model",)),
        ("pictures", "custom", ("command", "directory", "health", "unload", "busy", "size")),
        ("elsewhere", "custom", ("url", "size")),
    )
    by_name = {key.name: key for key in MODEL.keys}
    lines = ['# A model has the keys of "defaults" too.', "models:"]
    said: set[str] = set()
    for name, engine, names in examples:
        lines += [f"  {name}:", f"    engine: {engine}"]
        for one in names:
            lines += _example(by_name[one], "    ", said)
    return _as_example(lines)


def _engine_examples() -> str:
    lines = ["engines:"]
    said: set[str] = set()
    groups = (
        ("llama_server", ("binary",)),
        ("llama_cpp", ("python",)),
        ("ollama", ("host", "port", "models_dir", "keep_running", "environment")),
    )
    by_name = {key.name: key for key in ENGINE.keys}
    for engine, names in groups:
        lines.append(f"  {engine}:")
        for name in names:
            lines += _example(by_name[name], "    ", said)
        if engine == "llama_server":
            lines += [f"    # {by_name['defaults'].says}", "    defaults:", "      context: 8192"]
    lines += [
        f"    # {by_name['url'].says} It replaces all of ollama's keys above but the last.",
        f"    # url: {by_name['url'].example}",
    ]
    return _as_example(lines)


def _example(key: Key, indent: str, said: set[str]) -> list[str]:
    lines = [] if key.name in said else [f"{indent}# {key.says}"]
    said.add(key.name)
    if isinstance(key.kind, Section):
        lines.append(f"{indent}{key.name}:")
        for inner in key.kind.keys:
            lines += [f"{indent}  # {inner.says}", f"{indent}  {inner.name}: {inner.example or inner.default}"]
        return lines
    return [*lines, f"{indent}{key.name}: {key.example or key.default}"]


def _as_example(lines: list[str]) -> str:
    return "".join(f"#|{line}\n" for line in lines)


# The manual's tables -------------------------------------------------------------------------------------------------


def table(section: Section) -> str:
    """One section as a Markdown table."""
    rows = ["| key | what it does | allowed | default |", "|---|---|---|---|"]
    for key in section.keys:
        users = "" if key.engines is None else f" *({_users(key)})*"
        rows.append(f"| `{key.name}` | {_cell(key.says)}{users} | {_cell(key.kind.allowed)} | {_default(key)} |")
    return "\n".join(rows)


def definitions(section: Section) -> str:
    """One section as a list of definitions, for the manual page."""
    parts = []
    for key in section.keys:
        users = "" if key.engines is None else f" For {_users(key)}."
        default = f" Default: {_default(key)}." if _default(key) else ""
        parts.append(f"**{key.name}**\n:   {_cell(key.says)} Allowed: {_cell(key.kind.allowed)}.{default}{users}")
    return "\n\n".join(parts)


def names(section: Section) -> str:
    """The keys of one section, as a sentence has them."""
    return ", ".join(key.name for key in section.keys)


def _users(key: Key) -> str:
    return "llama engines" if key.engines == LLAMA else ", ".join(one for one in BUILT_IN if key.used_by(one))


def _default(key: Key) -> str:
    if key.default is None:
        return "required" if key.required else key.absent
    if key.default_engines is not None and key.default_engines != key.engines:
        return f"`{key.default}` (llama engines)"
    return f"`{key.default}`"


def _cell(text: str) -> str:
    return re.sub(r"(\$\{\w+\}( \$\{\w+\})*)", r"`\1`", text).replace("|", "\\|")


def renewed(manual: str) -> str:
    """A manual with all between ``<!-- table of PATH -->`` (or definitions, names) and ``<!-- end -->`` written anew.

    Raises KeyError for a block of a section that does not exist.
    """
    by_path = dict(sections()) | {"defaults": DEFAULTS}

    def block(match: re.Match[str]) -> str:
        form, path = match[1], match[2]
        section = by_path[path]
        forms = {"table": table, "definitions": definitions, "names": names}
        text = forms[form](section)
        return f"<!-- {form} of {path} -->\n\n{text}\n\n<!-- end -->"

    return re.sub(r"<!-- (table|definitions|names) of ([^>]+?) -->\n.*?<!-- end -->", block, manual, flags=re.DOTALL)


def main() -> None:
    SHIPPED.write_text(shipped_file(), encoding="utf-8")
    for manual in MANUALS:
        manual.write_text(renewed(manual.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
