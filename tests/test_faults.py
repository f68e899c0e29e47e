"""Faults of the machine: a clear line, nothing that was whole is damaged, and the run goes on.

Each is a real one, in a process of its own; a file that may not grow further is a full disk.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import tomli_w

import bertmill
import processes
from bertmill.data import encode
from bertmill.data.store import Store
from bertmill.errors import BertmillError, StoreError
from bertmill.train.run_folder import RunFolder
from small import CLOCKS, SMALL, SMALL_OVER_A_STORE, SMALL_TEXT, some

SETTINGS = [
    *SMALL,
    "tokenizer.vocab_size=120",
    "model.hidden_size=8",
    "model.intermediate_size=16",
    "model.max_position_embeddings=32",
    "train.log_every_steps=1",
    "train.validation_pairs=16",
]


def begin(corpus, out, steps, **more):
    return bertmill.pretrain(str(corpus), "tiny", out=out, steps=steps, settings=SETTINGS, **more)


def command(corpus, out, *more):
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["pretrain", "--corpus", corpus, "--recipe", "tiny", "--out", out, *settings, *more]


def assert_one_line(done, *parts):
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and line.startswith("bertmill: ")
    for part in parts:
        assert part in line


def end_of(run):
    newest = (run / "model").resolve().parent
    return (
        newest.name,
        (newest / "model" / "model.safetensors").read_bytes(),
        (newest / "optimizer.safetensors").read_bytes(),
        [
            {k: v for k, v in r.to_dict().items() if k not in CLOCKS}
            for records in RunFolder(run).metrics()
            for r in records
        ],
    )


@pytest.fixture(scope="module")
def undisturbed(corpus_file, tmp_path_factory):
    return end_of(begin(corpus_file, tmp_path_factory.mktemp("runs") / "run", 40).folder)


def is_whole(folder):
    """Whether every file of every checkpoint is as its hash says, and no other is there."""
    import torch

    from bertmill.train.checkpoint import newest_checkpoint
    from bertmill.train.world import World

    said, alone = [], World(torch.device("cpu"))
    return newest_checkpoint(RunFolder(folder), said.append, alone) is not None and not said


# --- a full disk ---------------------------------------------------------------------------------


def test_a_full_disk_while_a_shard_is_written(corpus_file, tmp_path):
    done = processes.run(
        ["prepare", "--corpus", corpus_file, "--out", tmp_path / "store", "--set", SMALL_TEXT[0]],
        {"RLIMIT_FSIZE": 6_000},
    )
    assert_one_line(done, "store", "cannot be written", "free space")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_a_checkpoint_is_written(corpus_file, tmp_path, undisturbed):
    run = begin(corpus_file, tmp_path / "run", 40, stop_after=1e-6).folder
    before = sorted(p.name for p in (run / "checkpoints").iterdir())
    done = processes.run(["pretrain", "--resume", run], {"RLIMIT_FSIZE": 12_000})
    assert_one_line(done, "checkpoints/step-4", "cannot be written", f"--resume {run}")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == before and is_whole(run)
    assert bertmill.resume(run).outcome.finished
    assert end_of(run) == undisturbed


def test_a_full_disk_while_metrics_are_written(corpus_file, tmp_path):
    settings = [*SETTINGS, "train.validate_every_steps=1000", "train.checkpoint_every_steps=1000"]
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=200, settings=settings,
        stop_after=1e-6,
    ).folder  # fmt: skip
    limit = 34_000  # no file of a checkpoint is as long as 200 lines of metrics
    assert all(f.stat().st_size < limit for f in run.rglob("*.safetensors"))
    done = processes.run(["pretrain", "--resume", run], {"RLIMIT_FSIZE": limit})
    assert_one_line(done, "metrics.jsonl", "cannot be written", "--resume")
    assert is_whole(run)
    assert bertmill.resume(run).outcome.finished
    steps = [r.step for r in RunFolder(run).metrics().train]
    assert steps == list(range(1, 201))


def test_no_more_file_handles(corpus_file, tmp_path):
    begin(corpus_file, tmp_path / "first", 1)  # prepares the store
    refused = 0
    for more in some(range(6)):
        out = tmp_path / f"run-{more}"
        done = processes.run(command(corpus_file, out, "--steps", 4), {"free_files": more})
        if done.returncode:
            assert_one_line(done, "; ")
            refused += 1
        if (out / "run.json").exists():
            assert bertmill.resume(out).outcome.finished
    assert refused


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(corpus_file, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(BertmillError, match="cannot be made"):
        begin(corpus_file, tmp_path / "closed" / "run", 1)


# --- what a run reads is damaged while it sleeps -------------------------------------------------


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
        return
    if how == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
def test_a_damaged_shard_of_the_cache_is_prepared_again(
    corpus_file, tmp_path, monkeypatch, capsys, undisturbed, how
):
    monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / "cache"))
    run = begin(corpus_file, tmp_path / "run", 40, stop_after=1e-6).folder
    [shard] = (tmp_path / "cache").rglob("train-00000.arrow")
    damage(shard, how)
    assert bertmill.resume(run).outcome.finished
    assert "train-00000.arrow" in capsys.readouterr().out
    assert end_of(run) == undisturbed


@pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
def test_a_damaged_shard_of_a_store_for_keeps_is_refused(corpus_file, tmp_path, how):
    bertmill.prepare(str(corpus_file), tmp_path / "store", settings=SMALL_TEXT)
    run = bertmill.pretrain(
        tmp_path / "store", "tiny", out=tmp_path / "run", steps=8, settings=SMALL_OVER_A_STORE,
        stop_after=1e-6,
    ).folder  # fmt: skip
    shutil.copytree(tmp_path / "store", tmp_path / "spare")
    damage(tmp_path / "store" / "train-00000.arrow", how)
    with pytest.raises(StoreError, match=r"train-00000\.arrow"):
        bertmill.resume(run)
    # A store that has moved is named anew, and must be the same.
    assert bertmill.resume(run, corpus=tmp_path / "spare").outcome.finished


def test_a_corpus_that_changed_under_a_run_does_not_matter_while_its_store_is_there(
    corpus_file, tmp_path, undisturbed
):
    text = shutil.copy(corpus_file, tmp_path / "corpus.txt")
    run = begin(text, tmp_path / "run", 40, stop_after=1e-6).folder
    Path(text).write_text("Another text. It is short.")
    assert bertmill.resume(run).outcome.finished
    assert end_of(run) == undisturbed


def test_a_corpus_and_a_cache_that_moved(corpus_file, tmp_path, monkeypatch, undisturbed):
    """The working folder, the text's place and the cache are all other ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / "cache"))
    shutil.copy(corpus_file, "corpus.txt")
    run = begin("corpus.txt", "run", 40, stop_after=1e-6).folder.resolve()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    once = bertmill.resume(run, stop_after=1e-6)
    assert once.outcome.steps == 2
    shutil.rmtree(tmp_path / "cache")
    shutil.move(tmp_path / "corpus.txt", tmp_path / "moved.txt")
    with pytest.raises(BertmillError, match="does not exist"):
        bertmill.resume(run)
    assert bertmill.resume(run, corpus="../moved.txt").outcome.finished
    assert end_of(run) == undisturbed


# --- what a run wrote is changed while it sleeps -------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "new"),
    [
        ("lr", "lr = 0.5"),
        ("batch_size", "batch_size = 9"),
        ("next_fraction", "next_fraction = 0.1"),
    ],
)
def test_another_recipe_is_refused_by_name(corpus_file, tmp_path, knob, new):
    run = begin(corpus_file, tmp_path / "run", 8, stop_after=1e-6).folder
    path = run / "recipe.toml"
    lines = [new if ln.startswith(f"{knob} =") else ln for ln in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    with pytest.raises(BertmillError, match=rf"\.{knob} is .*, the run began with"):
        bertmill.resume(run)


def change_recipe(run, change):
    """Edit the recipe of a run, in its folder and its checkpoints, as another version left it."""
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    change(recipe)
    (run / "recipe.toml").write_text(tomli_w.dumps(recipe))
    for path in (run / "checkpoints").glob("*/state.json"):
        state = json.loads(path.read_text())
        change(state["recipe"])
        path.write_text(json.dumps(state))


def test_a_run_from_before_a_knob_goes_on_with_its_default(corpus_file, tmp_path):
    run = begin(corpus_file, tmp_path / "run", 8, stop_after=1e-6).folder
    change_recipe(run, lambda recipe: recipe["train"].pop("nsp_weight"))
    assert bertmill.resume(run).outcome.finished


def test_a_run_with_a_knob_that_is_unknown_is_refused(corpus_file, tmp_path):
    run = begin(corpus_file, tmp_path / "run", 8, stop_after=1e-6).folder
    change_recipe(run, lambda recipe: recipe["train"].update(compiled=True))
    with pytest.raises(BertmillError, match=r"train\.compiled: is not a known key"):
        bertmill.resume(run)


def test_a_clock_that_jumps_changes_nothing(corpus_file, tmp_path, monkeypatch, undisturbed):
    jumps = iter([2**31, -(10**9), 5, 10**12] * 100_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    assert end_of(begin(corpus_file, tmp_path / "run", 40).folder) == undisturbed


# --- checkpoints ---------------------------------------------------------------------------------


def test_the_best_checkpoint_is_kept_beside_the_newest(corpus_file, tmp_path):
    """A rate that is far too high, and stays, makes held-out loss rise again."""
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=40,
        settings=[
            *SETTINGS, "optimizer.lr=1.0", "schedule.hold_fraction=1.0", "train.keep_checkpoints=1"
        ],
    ).folder  # fmt: skip
    validated = {r.step: r.scores.mlm_loss for r in RunFolder(run).metrics().held_out}
    best = min(validated, key=validated.get)
    assert best < 40
    assert {p.name for p in (run / "checkpoints").iterdir()} == {f"step-{best}", "step-40"}
    assert (run / "best").resolve().parent.name == f"step-{best}"
    assert (run / "model").resolve().parent.name == "step-40"
    scores = bertmill.load(run / "best").encode("the river").vectors
    assert scores.shape[0] == 1


def test_a_run_that_fell_back_ends_with_the_same_bits(corpus_file, tmp_path, undisturbed):
    run = begin(corpus_file, tmp_path / "run", 40, stop_after=1e-6).folder
    for _ in range(6):
        bertmill.resume(run, stop_after=1e-6)
    damage(run / "checkpoints" / "step-7" / "optimizer.safetensors", "flipped")
    damage(run / "checkpoints" / "step-6" / "state.json", "truncated")
    assert bertmill.resume(run).outcome.finished
    assert end_of(run) == undisturbed


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step": 7}, {"seconds": "x"}, {"losses": {}}, {"sha256": {"../../x": "y"}}],
)
def test_a_state_that_is_none_is_passed_over(corpus_file, tmp_path, change, capsys):
    run = begin(corpus_file, tmp_path / "run", 4, stop_after=1e-6).folder
    path = run / "checkpoints" / "step-1" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert bertmill.resume(run).outcome.finished
    assert "step-1 is damaged" in capsys.readouterr().out


def test_the_last_checkpoint_may_be_the_best(corpus_file, tmp_path):
    """Its step is validated before it is saved, wherever the run ends."""
    settings = [*SETTINGS, "train.validate_every_steps=7", "train.checkpoint_every_steps=10"]
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=20, settings=settings
    ).folder
    assert (run / "best").resolve() == (run / "model").resolve()


def test_a_best_checkpoint_that_is_damaged_leaves_no_link_behind(corpus_file, tmp_path):
    run = begin(corpus_file, tmp_path / "run", 4).folder
    assert (run / "best").is_dir()
    damage(run / "checkpoints" / "step-4" / "optimizer.safetensors", "flipped")
    bertmill.resume(run, stop_after=1e-6)
    assert not os.path.lexists(run / "best")
    assert (run / "model").is_dir()


def test_a_run_that_was_copied_with_its_links_followed(corpus_file, tmp_path):
    run = begin(corpus_file, tmp_path / "run", 4, stop_after=1e-6).folder
    shutil.copytree(run, tmp_path / "copy", symlinks=False)
    with pytest.raises(BertmillError, match="is a folder, where a run has a link"):
        bertmill.resume(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "model")
    assert bertmill.resume(tmp_path / "copy").outcome.finished


def test_half_an_optimizer_is_refused(corpus_file, tmp_path):
    import hashlib

    from safetensors.torch import load_file, save_file

    run = begin(corpus_file, tmp_path / "run", 4, stop_after=1e-6).folder
    folder = (run / "model").resolve().parent
    path = folder / "optimizer.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if name.endswith("/exp_avg"))]
    save_file(tensors, path)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(BertmillError, match="does not fit"):
        bertmill.resume(run)


def test_a_run_that_was_killed_before_it_began_is_begun_anew(corpus_file, tmp_path):
    """The recipe is written last: until then the folder is free."""
    run = begin(corpus_file, tmp_path / "run", 4).folder
    for path in run.iterdir():
        if path.name not in ("run.json", "lock"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert begin(corpus_file, tmp_path / "run", 4).outcome.finished


@pytest.mark.parametrize(
    "change",
    [{"corpus": []}, {"corpus": [5]}, {"budget_seconds": "x"}, {"init_from": 3}, {"more": 1}],
)
def test_facts_that_are_none(corpus_file, tmp_path, change):
    run = begin(corpus_file, tmp_path / "run", 2).folder
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BertmillError, match=r"run\.json: is damaged"):
        bertmill.resume(run)


def test_a_full_disk_while_a_model_is_exported(corpus_file, tmp_path):
    run = begin(corpus_file, tmp_path / "run", 2).folder
    done = processes.run(["export", run, "--out", tmp_path / "export"], {"RLIMIT_FSIZE": 6_000})
    assert_one_line(done, "export", "cannot be written")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_what_a_killed_preparation_left_is_swept_away(corpus_file, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / "cache"))
    run = begin(corpus_file, tmp_path / "one", 1).folder
    store = Path(RunFolder(run).read()[1].store)
    shutil.rmtree(store)
    (store.parent / f".{store.name}.part" / store.name).mkdir(parents=True)
    begin(corpus_file, tmp_path / "two", 1)
    assert list(store.parent.iterdir()) == [store]


def test_a_damaged_tokenizer_of_the_cache_is_made_again(
    corpus_file, tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / "cache"))
    run = begin(corpus_file, tmp_path / "run", 40, stop_after=1e-6).folder
    [path] = (tmp_path / "cache").rglob("tokenizer.json")
    damage(path, "truncated")
    assert bertmill.resume(run).outcome.finished
    assert end_of(run) == undisturbed


def test_a_tokenizer_is_found_again_from_another_folder(corpus_file, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / "cache"))
    source = begin(corpus_file, tmp_path / "source", 1).folder
    monkeypatch.chdir(tmp_path)
    run = begin(corpus_file, "run", 4, tokenizer="source/model", stop_after=1e-6).folder.resolve()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.chdir(source)
    assert bertmill.resume(run).outcome.finished


# --- signals and processes -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_and_leaves_the_last_checkpoint_whole(
    corpus_file, tmp_path, number
):
    out = tmp_path / "run"
    # A step of some seconds: the first signal waits for its end, the second does not.
    arguments = command(
        corpus_file, out, "--steps", 1000, "--set", "train.batch_size=20000",
        "--set", "train.checkpoint_every_steps=1",
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "bertmill", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (out / "checkpoints" / "step-1").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in {signal.SIGINT: (130, -2), signal.SIGTERM: (143, -15)}[number]
    assert "Traceback" not in stderr
    assert is_whole(out)


@pytest.mark.slow
def test_two_runs_that_prepare_the_same_corpus_share_one_store(corpus_file, tmp_path):
    environment = os.environ | {"BERTMILL_CACHE": str(tmp_path / "cache")}
    text = tmp_path / "corpus.txt"
    text.write_text("\n\n".join([corpus_file.read_text()] * 40))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bertmill", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for arguments in (command(text, tmp_path / n, "--steps", 2) for n in ("one", "two"))
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("tokenizer: " in out for out, _ in outputs) == 1
    [store] = (tmp_path / "cache" / "stores").iterdir()
    facts = [RunFolder(tmp_path / name).read()[1] for name in ("one", "two")]
    assert facts[0].store_identity == facts[1].store_identity == Store(store).identity


def test_a_lock_of_a_dead_process_is_taken_over(corpus_file, tmp_path):
    run = begin(corpus_file, tmp_path / "run", 8, stop_after=1e-6).folder
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
         "print('held', flush=True); time.sleep(600)", str(run / "lock")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BertmillError, match="in use by another process"):
        bertmill.resume(run)
    holder.kill()
    holder.communicate()
    assert bertmill.resume(run).outcome.finished


def test_a_worker_that_dies(corpus_file, tmp_path, monkeypatch):
    # A module that the worker process imports too: only a function's name travels to it.
    (tmp_path / "dying.py").write_text(
        "import os, signal\ndef die(documents):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(encode, "_encode_in_worker", import_module("dying").die)
    monkeypatch.setattr(encode, "_CHUNKS_BEFORE_WORKERS", 0)
    with pytest.raises(BertmillError, match="a worker process died"):
        bertmill.prepare(
            str(corpus_file), tmp_path / "out" / "store", settings=SMALL_TEXT, workers=2
        )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(corpus_file, tmp_path):
    (tmp_path / "sleeping.py").write_text(
        "import os, time\n"
        "def sleep(documents):\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
    )
    program = (
        "import bertmill, sleeping, bertmill.data.encode as encode\n"
        "encode._encode_in_worker, encode._CHUNKS_BEFORE_WORKERS = sleeping.sleep, 0\n"
        f"bertmill.prepare({str(corpus_file)!r}, 'out', settings={SMALL_TEXT!r}, workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    while not (line := process.stdout.readline()).strip().isdigit():  # a line about the tokenizer
        assert line
    process.kill()
    # The worker holds the pipe open as long as it lives.
    process.communicate(timeout=60)
