"""What a person can ask for in the menu, as values."""

from enum import StrEnum

from gpud.core.record import Record


class Kind(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    UNLOAD_ALL = "unload-all"
    CANCEL = "cancel"
    GIVE_AWAY = "give-away"
    TAKE_BACK = "take-back"
    """The six above are for the daemon, those below for the tray itself."""
    FAVOURITE = "favourite"
    CLEAR = "clear"
    QUIT = "quit"


class Wish(Record):
    """``model`` and ``job`` where the kind has any."""

    kind: Kind
    model: str = ""
    job: int = 0
