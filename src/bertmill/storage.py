"""Files and folders that are whole or absent, and their hashes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bertmill.errors import BertmillError, InputError

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


def refuse_as_new_file(out: Path, endings: Iterable[str]) -> None:
    """Raise `InputError` unless a new file can have this name, which ends in one of `endings`."""
    if out.suffix not in endings:
        *others, last = endings
        raise InputError(out, f"does not end in {', '.join(others)} or {last}")
    refuse_if_there(out)


@contextmanager
def file_that_appears_whole(
    out: Path, error: type[BertmillError], *, or_another: bool = False
) -> Iterator[Path]:
    """Give a hidden name on the same disk, which becomes `out` when the block ends well.

    Otherwise what was written vanishes. An `OSError` in the block becomes an `error`. Where another
    process has made `out` meanwhile, that one stays, which is an `error` too unless it is as good
    (`or_another`).
    """
    refuse_bad_name(out, error)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True
        ) as hidden:
            yield Path(hidden, out.name)
            if not out.exists():
                Path(hidden, out.name).rename(out)
            elif not or_another:
                raise error(out, "was made by another process meanwhile", "choose another `out`")
    except OSError as failure:
        raise error(
            out,
            f"cannot be written ({failure.strerror or failure})",
            "choose another place, or free space",
        ) from None


@contextmanager
def folder_that_appears_whole(
    out: Path, error: type[BertmillError], *, or_another: bool = False
) -> Iterator[Path]:
    """Give a folder that is hidden until the block ends well, as `file_that_appears_whole` does."""
    with file_that_appears_whole(out, error, or_another=or_another) as folder:
        folder.mkdir()
        yield folder


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock on a file; it goes with the process, however that ends.

    `waiting` is called where another process holds it, before waiting for that one; it may raise.
    """
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


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
