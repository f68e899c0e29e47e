"""Files that appear whole: one process at a time, and nothing left by those that were killed."""

import errno
import fcntl
import signal
import subprocess
import sys

import pytest

from bertmill.errors import InputError
from bertmill.storage import file_lock, file_that_appears_whole, folder_that_appears_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from bertmill import storage
from bertmill.errors import InputError
with getattr(storage, sys.argv[1])(Path(sys.argv[2]), InputError) as path:
    (path / "some").write_text("x") if path.is_dir() else path.write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("appear", [file_that_appears_whole, folder_that_appears_whole])
def test_a_second_process_is_refused_before_it_begins(appear, tmp_path):
    out = tmp_path / "out"
    with appear(out, InputError) as path:
        path.is_dir() or path.write_text("mine")
        with (
            pytest.raises(InputError, match="out: is being made by another process; wait for that"),
            appear(out, InputError),
        ):
            raise AssertionError("the work was begun")
        assert path.exists()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["file_that_appears_whole", "folder_that_appears_whole"])
def test_what_a_killed_process_left_goes_with_the_next(name, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, name, out])
    assert done.returncode == -signal.SIGKILL and [
        p for p in tmp_path.rglob("out*") if p.suffix != ".lock"
    ]
    with file_that_appears_whole(out, InputError) as path:
        assert not path.exists()
        path.write_text("whole")
    assert out.read_text() == "whole" and list(tmp_path.iterdir()) == [out]


def test_names_that_look_like_ours_are_left_alone(tmp_path):
    (tmp_path / ".out.mine").mkdir()
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "mine").touch()
    with folder_that_appears_whole(tmp_path / "out", InputError):
        pass
    names = [".out.mine", ".out.part", "mine", "out"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == names


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with folder_that_appears_whole(tmp_path / "out", InputError):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    with pytest.raises(OSError, match="No locks"), file_lock(tmp_path / "lock", fail):
        pass


# --- what commands make ---------------------------------------------------------------------------


def test_two_that_prepare_one_store(refused, bertmill, corpus_file, tmp_path):
    args = ["prepare", "--corpus", corpus_file, "--out", "store", "--vocab-size"]
    with folder_that_appears_whole(tmp_path / "store", InputError):
        refused([*args, 150], "store: is being made by another process; wait for that one")
    (tmp_path / "store").rmdir()
    assert bertmill(*args, 150)[0] == 0


@pytest.mark.parametrize(
    "args",
    [
        ["finetune", "--train", "data.jsonl", "--dev", "data.jsonl"],
        ["export", "--to", "onnx"],
        ["export"],
        ["embed", "data.jsonl"],
    ],
    ids=" ".join,
)
def test_two_with_one_out(args, refused, small_run, tmp_path):
    rows = [f'{{"text": "{word}", "label": "{word}"}}\n' for word in ("river", "road")]
    (tmp_path / "data.jsonl").write_text("".join(rows), "utf-8")
    verb, *more = args
    with folder_that_appears_whole(tmp_path / "out.npy", InputError):
        line = "out.npy: is being made by another process; wait for that one, or choose another --o"
        refused([verb, small_run.folder, *more, "--out", "out.npy", "--json"], line)
