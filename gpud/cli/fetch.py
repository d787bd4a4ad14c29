"""``gpudctl fetch``: downloads one file from a URL into a folder that gpud looks at."""

import argparse
import re
from argparse import Namespace
from typing import Any
from urllib.parse import unquote, urlsplit

from gpud.cli.arguments import Parser, some_path
from gpud.cli.exits import Usage
from gpud.cli.output import Output

DESCRIPTION = """\
Download one file from a URL, and check it against --sha256. The download runs
as you, with your proxies (HTTPS_PROXY), into a folder that you can write and
that gpud scans. Run the same command again to continue an interrupted
download."""

EXAMPLE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

EXAMPLES = (
    f"gpudctl fetch https://example.org/tiny-q8_0.gguf --sha256 {EXAMPLE}",
    "gpudctl fetch 'https://example.org/download?id=7' --name tiny.gguf --to ~/models",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="URL", help="https://… (http:// only with --sha256, or on this machine)")
    parser.add_argument(
        "--sha256", metavar="HEX", type=checksum, help="expected SHA-256; without it, the content is not checked"
    )
    parser.add_argument(
        "--to", type=some_path, metavar="DIR", help="target folder (default: the first of gpud's that you can write)"
    )
    parser.add_argument("--name", metavar="NAME", help="file name (default: the end of the URL)")
    parser.add_argument("--force", action="store_true", help="replace a different file of the same name")


def checksum(text: str) -> str:
    value = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise argparse.ArgumentTypeError(f'"{text[:80]}" is not a SHA-256, which has 64 hexadecimal digits')
    return value


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli.downloading.bringing import told

    return told(lambda: checked(arguments, output), output)


def checked(arguments: Namespace, output: Output) -> int:
    from gpud.cli.downloading.bringing import finished

    host, name, shown = read(arguments)
    if urlsplit(arguments.source).scheme == "http" and not arguments.sha256 and not is_here(host):
        raise Usage(
            f"fetch: anybody between {host} and here can change a download over http",
            hint="use https, or give the checksum with --sha256",
        )
    return finished(fetch(name, shown, arguments, output))


def read(arguments: Namespace) -> tuple[str, str, str]:
    """The host, the name of the file, and the URL as everybody may see it. Raises Usage."""
    try:
        parts = urlsplit(arguments.source)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host:
        raise Usage(f'fetch: "{arguments.source[:200]}" is not a URL', hint="write https://HOST/PATH")
    name = arguments.name or unquote(parts.path).rpartition("/")[2]
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        what = (
            f'"{arguments.name[:200]}" is not a file name' if arguments.name else "the URL does not end in a file name"
        )
        raise Usage(f"fetch: {what}", hint="give one with --name")
    # What stands behind the path may be a signature.
    return host, name, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_here(host: str) -> bool:
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def fetch(name: str, shown: str, arguments: Namespace, output: Output) -> int:
    from gpud.cli.downloading import folders
    from gpud.cli.downloading.bringing import brought
    from gpud.cli.downloading.job import connected
    from gpud.cli.downloading.process import Puller

    gpud = await connected(arguments.bus)
    try:
        folder = folders.target(arguments.to or "", gpud.kind if gpud is not None else "")
        ask: dict[str, Any] = {"do": "fetch", "url": arguments.source, "name": name, "folder": str(folder)}
        ask |= {"sha256": arguments.sha256 or "", "force": arguments.force}
        async with Puller() as puller:
            status = await brought(shown, ask, puller, gpud, output)
    finally:
        if gpud is not None:
            gpud.close()
    if not arguments.sha256 and not output.wants_json:
        output.note("gpudctl: its content was not verified: compare its checksum, or give --sha256 the next time")
    return status
