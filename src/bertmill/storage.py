"""Files and folders that are whole or absent, and their hashes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertmill.errors import BertmillError, InputError, ModelError, RunError

_UNFIT_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""NUL, or half a character: what Python makes of a byte that is not UTF-8."""


def refuse_bad_name(out: Path, error: type[BertmillError]) -> None:
    """Raise `error` for a name with NUL or not in UTF-8: not every library can open it."""
    if _UNFIT_CHARACTER.search(str(out)):
        raise error(out, "is not a valid file name (it has NUL, or is not valid UTF-8)")


def refuse_if_there(out: Path) -> None:
    """Raise `InputError` where there is something that a result would be written over."""
    refuse_bad_name(out, InputError)
    if os.path.exists(out):
        raise InputError(out, "already exists", "choose another `out`")


def model_folder(path: str | Path) -> Path:
    """Return the model's own folder: a run keeps it under ``model``."""
    path = Path(path)
    for folder in (path / "model", path):
        if os.path.isfile(folder / "config.json"):
            return folder
    if not os.path.exists(path):
        raise ModelError(path, "does not exist", "give a run folder or a model folder")
    raise ModelError(path, "is not a run or model folder (no config.json)", "give another folder")


def refuse_unless_run(path: Path) -> None:
    """Raise `RunError` unless the folder holds a run."""
    if not os.path.isfile(path / "recipe.toml"):
        raise RunError(path, "is not a run (no recipe.toml)", "give a run's folder")


def refuse_as_new_file(out: Path, endings: Iterable[str]) -> None:
    """Raise `InputError` unless a new file can have this name, which ends in one of `endings`."""
    if out.suffix not in endings:
        *others, last = endings
        raise InputError(out, f"does not end in {', '.join(others)} or {last}")
    refuse_if_there(out)


@contextmanager
def file_that_appears_whole(out: Path, error: type[BertmillError]) -> Iterator[Path]:
    """Give a hidden name on the same disk, which becomes `out` when the block ends well.

    Otherwise what was written vanishes: at once, or with the next call for this `out` where the
    process was killed. One process at a time makes an `out`; a second is refused before it begins.
    An `OSError` in the block becomes an `error`.
    """
    refuse_bad_name(out, error)
    hidden = out.parent / f".{out.name}.part"
    part, lock = hidden / out.name, hidden / f"{out.name}.lock"

    def refuse() -> None:
        raise error(
            out, "is being made by another process", "wait for that one, or choose another `out`"
        )

    try:
        hidden.mkdir(parents=True, exist_ok=True)
        with file_lock(lock, refuse, is_needed=False):
            try:
                remove(part)  # of a process that was killed
                yield part
                if out.exists():
                    raise error(
                        out, "was made by another process meanwhile", "choose another `out`"
                    )
                part.rename(out)
            finally:
                remove(part)
                remove(lock)
                with suppress(OSError):  # where a second process just came
                    hidden.rmdir()
    except OSError as failure:
        raise error(
            out,
            f"cannot be written ({failure.strerror or failure})",
            "choose another place, or free space",
        ) from None


@contextmanager
def folder_that_appears_whole(out: Path, error: type[BertmillError]) -> Iterator[Path]:
    """Give a folder that is hidden until the block ends well, as `file_that_appears_whole` does."""
    with file_that_appears_whole(out, error) as folder:
        folder.mkdir()
        yield folder


def remove(path: Path) -> None:
    """Remove a file, or a folder and what is in it, as far as there is one and that can be done."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None], *, is_needed: bool = True) -> Iterator[None]:
    """Hold a lock on a file; it goes with the process, however that ends.

    `waiting` is called where another process holds it, before waiting for that one; it may raise.
    A file system without locks is an `OSError`, unless the lock is not needed.
    """
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            if is_needed:
                raise
        yield


def hold(path: Path, owner: object) -> None:
    """Say to `is_held` that a file is in use, for as long as `owner` lives."""
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, descriptor)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_held(path: Path) -> bool:
    """Whether a process has a lock on a file, from `file_lock` or `hold`."""
    with path.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def write_json(path: Path, values: object) -> None:
    """Write values as indented JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def file_sha256(path: Path) -> str:
    """Hash a file's bytes, read in pieces; 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
