"""Models for the registry to remember, and looks at what it has made of them."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpud.core.catalogue import Entry, Format, Found, Place, Source
from gpud.core.record import replace


def found(name: str, folder: str = "/models", **changes: Any) -> Found:
    plain = Found(
        (Place(f"{folder}/{name}.gguf", Source.FOLDER, name),),
        Format.GGUF,
        f"8:{name}:1",
        5 << 30,
        architecture="llama",
        quantization="Q4_K_M",
        parameters="8B",
        trained_context=131072,
        template=True,
    )
    return replace(plain, **changes)


def entry(name: str, **changes: Any) -> Entry:
    """Under its name, as a look finds it for the first time."""
    return replace(Entry(0, name, found(name), compatible=("llama-server",)), **changes)


def by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {one.name: one for one in entries}


def names(entries: Iterable[Entry]) -> list[str]:
    return [one.name for one in entries]


def query(path: Path, sql: str) -> list[Any]:
    """As somebody sees it who looks from outside."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def change(path: Path, *statements: str) -> None:
    """As somebody changes it who should not."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for sql in statements:
            connection.execute(sql)
    finally:
        connection.close()
