"""One process at a time, by a lock file. Every lock of the project is taken here."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from regimen.core.errors import ConfigError

POOLS = "paths.pools=DIR, or the environment variable REGIMEN_HOME"
# What flock says where a file system has no locks: the last is a kernel's that lacks the call.
_NONE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


@contextmanager
def locked(path: Path, *, patient: bool = True, setting: str = POOLS) -> Iterator[None]:
    """Hold the lock file `path`. Waits for who holds it, or, if not patient, raises filelock.Timeout.

    setting: what to type for another folder, for the error. Raises ConfigError where the file system gives no locks:
    a file that merely exists, as a lock, would stay behind a killed process and stop every run after it.
    """
    made = not path.exists()
    lock = filelock.FileLock(path, **({"fallback_to_soft": False} if _may_fall_back() else {}))
    try:
        lock.acquire(timeout=-1 if patient else 0)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, filelock.Timeout) or (isinstance(error, OSError) and error.errno not in _NONE):
            raise
        if made:
            path.unlink(missing_ok=True)
        raise ConfigError(
            "the file system of this folder has no file locks, so that processes could spoil each other's files",
            got=f"{path.parent}: {getattr(error, 'strerror', None) or error}",
            allowed="a local disk, or a network file system that is mounted with locks (Lustre: the option flock; NFS: "
            "without nolock)",
            do=f"choose another folder: {setting}",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _may_fall_back() -> bool:
    """Whether this version of filelock would take a mere file for a lock."""
    return "fallback_to_soft" in inspect.signature(filelock.FileLock.__init__).parameters
