"""What records are made of. It owns how they compare, how they are shown and copied, and knows none of them.

A dataclass would do, but compiles its methods whenever gpud starts: of 250 that was half of the start and 3 MiB.
"""

from typing import TYPE_CHECKING, dataclass_transform

from msgspec import Struct, field

if TYPE_CHECKING:
    # The same by contract; of this one a type checker knows which fields there are.
    from dataclasses import replace
else:
    from msgspec.structs import replace

__all__ = ["Record", "Struct", "field", "replace", "repr_without", "same_without"]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record(Struct, frozen=True):
    """A value: it never changes, and is equal to another of its kind with equal fields. :class:`Struct` is what may
    change.
    """


def repr_without(record: Struct, *hidden: str) -> str:
    """The text of a record in which fields are left out: secrets, which must not come into a log or a traceback."""
    shown = (f"{name}={getattr(record, name)!r}" for name in record.__struct_fields__ if name not in hidden)
    return f"{type(record).__name__}({', '.join(shown)})"


def same_without(record: Struct, other: object, *ignored: str) -> bool:
    """Whether two are of one kind and equal in all but these fields."""
    return type(record) is type(other) and all(
        getattr(record, name) == getattr(other, name) for name in record.__struct_fields__ if name not in ignored
    )
