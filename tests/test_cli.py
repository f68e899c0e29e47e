"""The verbs of the command line: what they print, where, and how they exit."""

import json
import shutil
import subprocess
import sys

import pytest

import processes
from bertmill.data import prepare

OUTCOME_KEYS = {
    "steps",
    "finished",
    "stopped_by",
    "seconds",
    "mlm_loss",
    "nsp_loss",
    "mfu",
    "pairs_per_second",
    "tokens_per_second",
    "waiting_fraction",
    "device",
    "held_out",
    "diagnosis",
}
RUN_KEYS = {"run", "recipe", "vocab_size", "train_documents"} | OUTCOME_KEYS
HELD_OUT_KEYS = {
    "mlm_loss",
    "mlm_accuracy",
    "nsp_loss",
    "nsp_accuracy",
    "num_predictions",
    "num_pairs",
    "unigram_nats",
    "no_context_nats",
    "nsp_chance_nats",
    "nsp_overlap_nats",
    "nsp_overlap_accuracy",
}
COUNT_KEYS = {"vocab_size", "tokenizer_identity", "splits", "seen_fraction"}
MODEL_KEYS = {
    "kind",
    "folder",
    "parameters",
    "vocab_size",
    "tokenizer_identity",
    "special_tokens",
    "new_weights",
    "model",
}
VERBS = (
    *("pretrain", "prepare", "cache", "inspect", "encode", "embed", "similar-words", "fill-mask"),
    *("evaluate", "finetune", "predict", "export"),
)
# A network that takes a second, over a store that is there already.
SETTINGS = [
    "pairs.max_length=32",
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.log_every_steps=1",
]


@pytest.fixture
def bertmill_json(bertmill):
    """Run a verb with --json: the one object that is on standard output."""

    def run(*args):
        status, out, _ = bertmill(*args, "--json")
        assert status == 0
        assert out.endswith("\n") and out.count("\n") == 1
        found = json.loads(out)
        assert isinstance(found, dict)
        return found

    return run


def settings(*more):
    return [part for setting in [*SETTINGS, *more] for part in ("--set", setting)]


@pytest.fixture
def copied_run(small_run, tmp_path):
    return shutil.copytree(small_run.folder, tmp_path / "copy", symlinks=True)


def in_a_process(*args, **options):
    return processes.run(args, **options)


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [[], ["pretrain"], ["fill-mask"]])
def test_help(verb):
    done = in_a_process(*verb, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "Usage: " in done.stdout and "--help" in done.stdout


def test_help_lists_every_verb(bertmill):
    status, out, _ = bertmill("--help")
    assert status == 0
    for verb in VERBS:
        assert f"  {verb} " in out


def test_inspect_base_in_a_process():
    done = in_a_process("inspect", "base", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["parameters"]["encoder_with_pooler"] == 109_482_240


@pytest.mark.slow
def test_from_text_to_fillers_in_processes(corpus_file, tmp_path):
    """Nothing but JSON is on standard output, whatever libraries print behind Python's back."""
    more = settings("tokenizer.vocab_size=200", "text.held_out_fraction=0.2")
    done = in_a_process(
        *("pretrain", "--corpus", corpus_file, "--recipe", "tiny", "--steps", 2, "--out", "run"),
        *more,
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] is True
    assert "held-out at step 2" in done.stderr
    done = in_a_process("fill-mask", "run", "the [MASK]", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["masks"]) == 1


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m bertmill inspect tiny | true; "
    done = subprocess.run(
        ["bash", "-c", command + "exit ${PIPESTATUS[0]}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- pretrain ------------------------------------------------------------------------------------


def test_pretrain_json(bertmill_json, small_store, tmp_path):
    found = bertmill_json(
        *("pretrain", "--corpus", small_store.folder, "--recipe", "tiny", "--out", "run"),
        *("--steps", 2, "--seed", 7, *settings()),
    )
    assert set(found) == RUN_KEYS
    assert set(found["held_out"]) == HELD_OUT_KEYS
    assert (found["run"], found["recipe"], found["steps"]) == ("run", "tiny", 2)
    assert found["finished"] is True
    assert found["stopped_by"] is None
    assert found["vocab_size"] == small_store.tokenizer.size
    recipe = (tmp_path / "run" / "recipe.toml").read_text("utf-8")
    assert "seed = 7\n" in recipe and "steps = 2\n" in recipe


def test_pretrain_json_tells_its_progress_on_standard_error(bertmill, small_store):
    _, _, err = bertmill(
        *("pretrain", "--corpus", small_store.folder, "--recipe", "tiny", "--steps", 2, "--json"),
        *settings(),
    )
    assert "step      1  mlm " in err
    assert "held-out at step 2:" in err


def test_pretrain_tells_what_it_did_and_where(bertmill, small_store):
    status, out, err = bertmill(
        *("pretrain", "--corpus", small_store.folder, "--recipe", "tiny", "--steps", 2),
        *settings(),
    )
    assert (status, err) == (0, "")
    assert "sentence pairs/s on " in out
    assert "held-out: MLM loss " in out and "held-out: NSP loss " in out
    assert out.endswith("finished at step 2: runs/tiny-1\n")


def test_runs_are_numbered(bertmill_json, small_store):
    command = ["pretrain", "--corpus", small_store.folder, "--recipe", "tiny", "--steps", 1]
    names = [bertmill_json(*command, *settings())["run"] for _ in range(2)]
    assert names == ["runs/tiny-1", "runs/tiny-2"]


def test_pretrain_without_pairs_has_no_next_sentence_scores(bertmill_json, small_store):
    found = bertmill_json(
        *("pretrain", "--corpus", small_store.folder, "--recipe", "tiny", "--steps", 1),
        *settings("pairs.kind=none"),
    )
    assert found["nsp_loss"] is found["held_out"]["nsp_loss"] is None
    assert found["held_out"]["num_pairs"] == 0


def test_stop_after_saves_and_says_how_to_go_on(bertmill, bertmill_json, small_store):
    status, out, _ = bertmill(
        *("pretrain", "--corpus", small_store.folder, "--recipe", "tiny", "--out", "run"),
        *("--steps", 3, "--stop-after", "0.000001s", *settings()),
    )
    assert status == 0
    assert "saved, not finished at step 1: run\n" in out
    assert out.endswith("go on with: bertmill pretrain --resume run\n")
    found = bertmill_json("pretrain", "--resume", "run")
    assert (found["steps"], found["finished"]) == (3, True)


def test_budget(bertmill_json, small_store):
    found = bertmill_json(
        *("pretrain", "--corpus", small_store.folder, "--recipe", "tiny", "--budget", "1s"),
        *settings(),
    )
    assert found["finished"] is True
    assert found["steps"] > 0
    assert found["seconds"] == pytest.approx(1, abs=1)


def test_resume_with_more_steps(bertmill_json, copied_run):
    found = bertmill_json("pretrain", "--resume", copied_run, "--steps", 10)
    assert set(found) == RUN_KEYS
    assert (found["steps"], found["finished"]) == (10, True)


def test_resume_of_a_finished_run_does_nothing(bertmill_json, copied_run):
    found = bertmill_json("pretrain", "--resume", copied_run)
    assert (found["steps"], found["finished"]) == (8, True)
    assert found["pairs_per_second"] is None
    assert found["mlm_loss"] > 0


# --- prepare -------------------------------------------------------------------------------------


def test_prepare_json(bertmill_json, corpus_file):
    found = bertmill_json(
        *("prepare", "--corpus", corpus_file, "--out", "store", "--vocab-size", 100)
    )
    assert set(found) == {"kind", *COUNT_KEYS, "text", "pairs"}
    assert (found["kind"], found["vocab_size"], found["pairs"]) == ("store", 100, [])
    assert set(found["splits"]) == {"train", "held_out"}
    assert set(found["splits"]["train"]) == {"num_documents", "num_sentences", "num_tokens"}


def test_prepare_word_level(bertmill_json, corpus_file):
    found = bertmill_json(
        *("prepare", "--corpus", corpus_file, "--out", "store", "--tokenizer-kind", "word"),
        *("--set", "tokenizer.mask_token=<mask>"),
    )
    assert bertmill_json("inspect", "store")["tokenizer_identity"] == found["tokenizer_identity"]


def test_prepare_tells_what_it_made(bertmill, corpus_file):
    status, out, err = bertmill("prepare", "--corpus", corpus_file, "--out", "store")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith("store: ")


def test_several_sources_and_held_out_text(bertmill_json, corpus_file, tmp_path):
    (tmp_path / "more.txt").write_text("One more document. It is short.", "utf-8")
    (tmp_path / "unseen.txt").write_text("Never seen. Not once.\n\nNor this.", "utf-8")
    found = bertmill_json(
        *("prepare", "--corpus", corpus_file, "--corpus", "more.txt", "--out", "store"),
        *("--held-out", "unseen.txt"),
    )
    documents = {name: split["num_documents"] for name, split in found["splits"].items()}
    assert documents == {"train": 61, "held_out": 2}


# --- inspect -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "encoder"), [("base", 109_482_240), ("large", 335_141_888)])
def test_inspect_recipe_json(bertmill_json, name, encoder):
    found = bertmill_json("inspect", name)
    assert set(found) == {"kind", "parameters", "recipe"}
    assert found["kind"] == "recipe"
    assert found["parameters"]["encoder_with_pooler"] == encoder


def test_inspect_store_json(bertmill_json, small_store):
    found = bertmill_json("inspect", small_store.folder, "--pairs", 2)
    assert set(found) == {"kind", *COUNT_KEYS, "text", "pairs"}
    assert [set(pair) for pair in found["pairs"]] == [{"is_next", "text"}] * 2


def test_inspect_run_json(bertmill_json, small_run):
    found = bertmill_json("inspect", small_run.folder)
    assert set(found) == {"kind", "facts", "last", "model", *COUNT_KEYS, "pairs", "recipe"}
    assert set(found["last"]) == {"train", "held_out"}
    assert set(found["model"]) == MODEL_KEYS


def test_inspect_model_json(bertmill_json, small_run):
    found = bertmill_json("inspect", small_run.folder / "model")
    assert set(found) == MODEL_KEYS
    assert found["kind"] == "model"


def test_inspect_without_json_is_for_people(bertmill, small_run):
    status, out, err = bertmill("inspect", small_run.folder, "--pairs", 1)
    assert (status, err) == (0, "")
    assert out.startswith(f"run {small_run.folder}\n")
    assert "hidden_size=16, " in out and "[CLS]" in out


# --- encode and fill-mask ------------------------------------------------------------------------


def test_encode_json(bertmill_json, small_run):
    found = bertmill_json("encode", small_run.folder, "the river", "my sister")
    assert set(found) == {"shape", "tokens", "words", "vectors"}
    assert found["shape"] == [1, len(found["tokens"]), 16]
    assert len(found["words"]) == len(found["tokens"]) == len(found["vectors"][0])
    assert found["words"][0] is None
    assert {len(row) for row in found["vectors"][0]} == {16}


def test_encode_without_json_has_a_line_a_token(bertmill, small_run):
    status, out, err = bertmill("encode", small_run.folder, "the river")
    assert (status, err) == (0, "")
    first, *rows = out.splitlines()
    assert first == f"vectors of shape (1, {len(rows)}, 16)"
    assert rows[0].split()[0] == "[CLS]"


def test_fill_mask_json(bertmill_json, small_run):
    found = bertmill_json("fill-mask", small_run.folder, "[MASK] crosses the [MASK]", "--top", 2)
    assert set(found) == {"text", "masks"}
    assert found["text"] == "[MASK] crosses the [MASK]"
    assert [len(mask) for mask in found["masks"]] == [2, 2]
    assert set(found["masks"][0][0]) == {"token", "probability"}


def test_fill_mask_without_json_numbers_several_masks(bertmill, small_run):
    _, one, _ = bertmill("fill-mask", small_run.folder, "the [MASK]")
    assert one.startswith("mask:\n") and one.count("%") == 5
    _, two, _ = bertmill("fill-mask", small_run.folder, "[MASK] [MASK]", "--top", 1)
    assert "mask 1:\n" in two and "mask 2:\n" in two and two.count("%") == 2


def test_text_that_begins_with_a_dash_follows_two_dashes(bertmill, small_run):
    status, out, _ = bertmill("encode", "--json", "--", small_run.folder, "-the river")
    assert status == 0
    assert "-" in json.loads(out)["tokens"] or "[UNK]" in json.loads(out)["tokens"]


# --- processes that prepare text -----------------------------------------------------------------


@pytest.mark.parametrize("given", [[], ["--workers", 3]], ids=["default", "given"])
def test_every_command_that_prepares_text_takes_workers(
    given, bertmill, small_run, corpus_file, tmp_path, monkeypatch
):
    """None is one per core."""
    started, make_pool = [], prepare.DocumentPool

    def pool(tokenizer, text, workers):
        started.append(workers)
        return make_pool(tokenizer, text, 1)

    monkeypatch.setattr(prepare, "DocumentPool", pool)
    run = shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True)
    text = ["--held-out", corpus_file]
    for n, command in enumerate(
        (
            ["prepare", "--corpus", corpus_file, "--out", "store", "--vocab-size", 150],
            ["pretrain", "--resume", run],
            ["evaluate", run, *text],
            ["export", run, "--to", "onnx", "--out", "onnx", *text],
        ),
        start=1,
    ):
        monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / f"cache-{n}"))
        facts = json.loads((run / "run.json").read_text("utf-8"))
        (run / "run.json").write_text(json.dumps(facts | {"store": "gone"}), "utf-8")
        status, _, err = bertmill(*command, *given)
        assert status == 0, err
        assert started == [given[1] if given else None] * n, command
