"""What survives the daemon: records of running engines, what models there are, what was measured, and what happened.

Records are about living processes: files in the runtime directory, gone after a reboot, out of a full disk's way. The
rest is one SQLite database in the state directory. Neither ever stops a load.
"""

from gpud.store.file_store import FileStore

__all__ = ["FileStore"]
