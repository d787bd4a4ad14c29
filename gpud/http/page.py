"""The page at /docs: an OpenAPI document as HTML that needs nothing from elsewhere, and no script."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; text-transform: capitalize; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; } code, pre { font: .875rem/1.5 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: .4rem; overflow-x: auto; padding: .6rem; }
.method { display: inline-block; font-weight: 700; min-width: 4.5rem; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .2rem .6rem .2rem 0; vertical-align: top; }
.about { opacity: .75; }
"""

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

PAGE_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)

DEPTH = 4
"""So many records within records are shown in an example."""


def page(document: Mapping[str, Any]) -> str:
    """The whole page."""
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    body = "".join(_sections(document))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(info['description'])}</p>"
        f'<p>For programs: <a href="/openapi.json">/openapi.json</a></p>{body}</body></html>\n'
    )


def _sections(document: Mapping[str, Any]) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2>"
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation.get("tags", ()):
                    yield _operation(document, path, method.upper(), operation)


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    head = f'<code><span class="method">{method}</span> {escape(path)}</code>'
    about = f'<span class="about">{escape(operation["summary"])}</span>'
    parts = [f'<details id="{escape(operation["operationId"])}"><summary>{head} {about}</summary>']
    parameters = operation.get("parameters", ())
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(_kind(document, one['schema']))}</td>"
            f"<td>{escape(one.get('description', 'in the path'))}</td></tr>"
            for one in parameters
        )
        parts.append(f"<table>{rows}</table>")
    body = _schema(operation.get("requestBody"))
    if body:
        parts.append(f"<h4>Body</h4>{_described(document, body)}")
    answer = _schema(operation["responses"]["200"])
    if answer:
        parts.append(f"<h4>Answer</h4>{_described(document, answer)}")
    return "".join(parts) + "</details>"


def _schema(holder: Mapping[str, Any] | None) -> Mapping[str, Any]:
    content = (holder or {}).get("content", {})
    found: Mapping[str, Any] = content.get("application/json", {}).get("schema", {})
    return found


def _described(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    meant = _resolved(document, schema.get("items", schema))
    about = meant.get("description", "")
    text = json.dumps(_example(document, schema, DEPTH), indent=2, ensure_ascii=False)
    return (f"<p>{escape(about)}</p>" if about else "") + f"<pre>{escape(text)}</pre>"


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _example(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> Any:
    """The shape: each field with the kind of its value."""
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        meant = [one for one in schema["anyOf"] if one.get("type") != "null"]
        records = [one for one in meant if "$ref" in one]
        return _example(document, records[0], depth) if records else _kind(document, schema)
    if schema.get("type") == "object" and "properties" in schema and depth:
        return {name: _example(document, one, depth - 1) for name, one in schema["properties"].items()}
    if schema.get("type") == "array" and "items" in schema and depth:
        return [_example(document, schema["items"], depth - 1)]
    return _kind(document, schema)


def _kind(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_kind(document, one) for one in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    return str(schema.get("type", "anything"))
