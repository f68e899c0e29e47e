"""What the user can fix: status 2, nothing on standard output, one line on standard error.

The line says where the fault is, what it is, and how to fix it.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest

import bertmill as package
from bertmill.config import TokenizerSection
from bertmill.errors import InputError
from bertmill.text.tokenizer import load_tokenizer
from small import SMALL

SETTINGS = [*SMALL, "text.held_out_fraction=0.0"]


def check_line(err, parts):
    assert err.endswith("\n") and err.count("\n") == 1
    assert err.startswith("bertmill: ")
    assert len(err) < 400
    for part in map(str, parts):
        assert part in err


def pretrain(corpus, *more, recipe="tiny"):
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["pretrain", "--corpus", corpus, "--recipe", recipe, "--steps", 2, *settings, *more]


@pytest.fixture
def copied_run(small_run, tmp_path):
    return shutil.copytree(small_run.folder, tmp_path / "copy", symlinks=True)


@pytest.fixture
def copied_model(small_run, tmp_path):
    return shutil.copytree(small_run.folder / "model", tmp_path / "model-copy")


# --- the corpus ----------------------------------------------------------------------------------

GOOD_LINE = b'{"text": "The river crosses the valley."}\n'


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("empty.txt", b"", ["empty.txt: is empty", "give a corpus with text"]),
        ("blank.txt", b" \n\n \n", ["blank.txt: is empty", "give a corpus with text"]),
        (
            "latin.txt",
            b"The r\xefver.\n",
            ["latin.txt: is not UTF-8 at byte 5 (0xef)", "iconv"],
        ),
        (
            "later.txt",
            b"first\nsecond \xc3\xa9\nthird \xff\n",
            ["later.txt: is not UTF-8 at byte 22 (0xff)", "iconv"],
        ),
        (
            "broken.jsonl",
            GOOD_LINE + b'{"text": \n',
            ["broken.jsonl, line 2: is not JSON", "fix or delete it"],
        ),
        (
            "other.jsonl",
            GOOD_LINE + b'\n{"body": "x", "id": 3}\n',
            ["other.jsonl, line 3: has no column 'text' (has body, id)", "set text.field=NAME"],
        ),
        (
            "list.jsonl",
            b"[1, 2]\n",
            ["list.jsonl, line 1: is not a JSON object"],
        ),
        (
            "number.jsonl",
            b'{"text": 3}\n',
            ["number.jsonl, line 1: column 'text' is int, not text", "fix it"],
        ),
        (
            "half.jsonl",
            b'{"text": "\\ud800"}\n',
            ["half.jsonl, line 1: holds half a character", "U+D800", "delete it"],
        ),
        (
            "cut.txt.gz",
            gzip.compress(bytes(range(32, 127)) * 50)[:-20],
            ["cut.txt.gz: cannot be read to its end", "fetch it again"],
        ),
        (
            "not.txt.gz",
            b"plain text",
            ["not.txt.gz: cannot be read to its end", "fetch it again"],
        ),
        (
            "not.parquet",
            b"plain text",
            ["not.parquet: cannot be read to its end", "fetch it again"],
        ),
        ("notes.doc", b"text", ["notes.doc: is of an unknown kind", ".txt, .tokens, .jsonl"]),
    ],
)
def test_bad_file(name, content, parts, refused, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(pretrain(name, "--out", "run"), *parts)
    refused(["prepare", "--corpus", name, "--out", "store"], *parts)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {name}  # neither half a run nor half a store


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("not-there.txt", ["not-there.txt: does not exist", "check the name"]),
        ("no*match.txt", ["no*match.txt: matches no file", "check the name"]),
        ("", ["--corpus", "; "]),  # an unset variable, not the folder one is in
        ("sample:other", ["sample:other: is not a known sample", "sample:sotu"]),
        ("nosuch://x/y.txt", ["nosuch://x/y.txt: cannot be opened", "a URL looks like"]),
        ("folder", ["folder: is a folder without text", "put files into it that end in .txt"]),
    ],
)
def test_bad_source(source, parts, refused, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.doc").write_text("text", "utf-8")
    refused(pretrain(source), *parts)
    refused(["prepare", "--corpus", source, "--out", "store"], *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_bad_held_out_source(refused, corpus_file):
    refused(pretrain(corpus_file, "--held-out", "not-there.txt"), "not-there.txt: does not exist")


def one_document(tmp_path):
    text = tmp_path / "one.txt"
    text.write_text("The river crosses the valley. " * 20 + "The old bridge follows.", "utf-8")
    return text


def test_a_single_document_has_no_random_second_segment(bertmill, tmp_path):
    """Preparing tells its progress before this is known, so standard output is not empty."""
    status, _, err = bertmill(*pretrain(one_document(tmp_path)))
    assert status == 2
    check_line(err, ["is a single document", "separate documents with blank lines"])


def test_a_run_that_could_not_begin_does_not_take_its_folder(bertmill, tmp_path):
    """The user mends the setting and types the same line again."""
    text = one_document(tmp_path)
    assert bertmill(*pretrain(text, "--out", "run"))[0] == 2
    status, _, err = bertmill(*pretrain(text, "--out", "run", "--set", "pairs.kind=none"))
    assert (status, err) == (0, "")


# --- the recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        (
            "train.batchsize=8",
            ["recipe tiny: train.batchsize: is not a known key (did you mean 'batch_size'?)"],
        ),
        ("train.qqq=8", ["recipe tiny: train.qqq: is not a known key; known keys are batch_size"]),
        ("trian.steps=8", ["recipe tiny: trian: is not a known key (did you mean 'train'?)"]),
        ("train.batch.size=8", ["recipe tiny: train.batch.size: is not a known key"]),
        ("train.steps", ["--set train.steps: is not of the form section.key=value; write for"]),
        (
            "train.batch_size=0",
            ["recipe tiny: train.batch_size: 0 is not allowed", "greater than or equal to 1"],
        ),
        (
            "masking.mask_fraction=1.5",
            ["recipe tiny: masking.mask_fraction: 1.5 is not allowed", "less than 1"],
        ),
        (
            "model.hidden_act=swish",
            ["model.hidden_act: 'swish' is not allowed", "'gelu' or 'relu'"],
        ),
        (
            "model.num_attention_heads=5",
            ["num_attention_heads=5 does not divide hidden_size=", "choose a divisor"],
        ),
        (
            "pairs.max_length=1024",
            [
                "max_length=1024 is above model.max_position_embeddings=512",
                "lower the one or raise the other",
            ],
        ),
        (
            "train.device=nonsense",
            ["train.device=nonsense: is not a device", "set auto, cpu, cuda"],
        ),
        ("train.device=meta", ["train.device=meta: is not a device", "set auto, cpu, cuda"]),
        ("tokenizer.path=no-folder", ["no-folder: does not exist", "give a tokenizer folder"]),
    ],
)
def test_bad_setting(setting, parts, refused, corpus_file):
    refused(pretrain(corpus_file, "--set", setting), *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[train]\nsteps =\n", ["is not TOML", "line 2", "fix that line"]),
        ("[train]\nstep = 5\n", ["train.step: is not a known key (did you mean 'steps'?)"]),
        ("[trian]\nsteps = 5\n", ["trian: is not a known key (did you mean 'train'?)"]),
        ("[train]\nsteps = -5\n", ["train.steps: -5 is not allowed", "greater than or equal to 1"]),
        ("train = 5\n", ["train: is a section, not a value", "write [train]"]),
    ],
)
def test_bad_recipe_file(content, parts, refused, corpus_file, tmp_path):
    (tmp_path / "mine.toml").write_text(content, "utf-8")
    refused(["pretrain", "--corpus", corpus_file, "--recipe", "mine.toml"], "mine.toml", *parts)
    refused(["inspect", "mine.toml"], "mine.toml", *parts)


def test_unknown_recipe(refused, corpus_file):
    refused(
        pretrain(corpus_file, recipe="tinny"),
        "recipe 'tinny': is neither a known name nor a file (did you mean 'tiny'?)",
        "known names are base, continue, d2l, large",
    )


# --- the output folder ---------------------------------------------------------------------------


def test_output_folder_that_holds_a_run(refused, corpus_file, small_run):
    refused(
        pretrain(corpus_file, "--out", small_run.folder),
        f"{small_run.folder}: already holds a run",
        f"choose another --out, or go on with: bertmill pretrain --resume {small_run.folder}",
    )


def test_output_folder_that_is_not_empty(refused, corpus_file, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    refused(
        pretrain(corpus_file, "--out", "full"),
        "full: already exists and is not empty; choose another --out",
    )


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_output_folder_that_is_a_file(out, refused, corpus_file, tmp_path):
    (tmp_path / "file").touch()
    refused(pretrain(corpus_file, "--out", out), f"{out}: ", "choose another --out")


def test_store_that_is_there_already(refused, corpus_file, small_store):
    refused(
        ["prepare", "--corpus", corpus_file, "--out", small_store.folder],
        f"{small_store.folder}: already exists; choose another --out",
    )


# --- stores and tokenizers -----------------------------------------------------------------------


def test_tokenizer_that_did_not_make_the_store(refused, small_store, tmp_path):
    """It has as many entries as the right one: only its identity tells."""
    vocab = (small_store.folder / "tokenizer" / "vocab.txt").read_text("utf-8").split("\n")
    vocab[10], vocab[11] = vocab[11], vocab[10]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab), "utf-8")
    other = load_tokenizer(tmp_path / "vocab.txt", TokenizerSection())
    assert other.size == small_store.tokenizer.size
    refused(
        ["pretrain", "--corpus", small_store.folder, "--tokenizer", "vocab.txt"],
        f"{small_store.folder}: was not made with the tokenizer {tmp_path / 'vocab.txt'} (other",
        "prepare the corpus with that tokenizer, or leave it out",
    )


def test_store_with_held_out_text(refused, small_store, corpus_file):
    refused(
        pretrain(small_store.folder, "--held-out", corpus_file),
        "--corpus: a prepared store cannot be combined with other text; prepare all",
    )


def test_store_with_more_text(refused, small_store, corpus_file):
    refused(
        pretrain(small_store.folder, "--corpus", corpus_file), "a prepared store cannot be combined"
    )


def test_setting_that_comes_too_late_for_a_store(refused, small_store):
    refused(
        ["pretrain", "--corpus", small_store.folder, "--set", "tokenizer.vocab_size=99"],
        "--set tokenizer.vocab_size=99: comes too late for the store",
        "prepare the text with this setting",
    )


def test_damaged_store(refused, small_store, tmp_path):
    copy = shutil.copytree(small_store.folder, tmp_path / "store")
    shard = copy / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for args in (["pretrain", "--corpus", "store"], ["inspect", "store"]):
        refused(args, "store/train-00000.arrow: is damaged", "prepare the corpus again")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", ["'[MASK]' is not in the vocabulary", "[tokenizer]"]),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", ["'a' is listed twice", "delete one"]),
    ],
)
def test_bad_vocabulary(content, parts, refused, corpus_file, tmp_path):
    (tmp_path / "vocab.txt").write_text(content, "utf-8")
    refused(pretrain(corpus_file, "--tokenizer", "vocab.txt"), "vocab.txt: ", *parts)


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        ["--out", "other"],
        ["--init-from", "model"],
        ["--budget", "10m"],
        ["--set", "train.seed=2"],
        ["--seed", "2"],
        ["--seed", "0"],
        ["--tokenizer", "vocab.txt"],
        ["--recipe", "tiny"],
    ],
)
def test_resume_takes_no_other_recipe(more, refused, copied_run):
    refused(
        ["pretrain", "--resume", copied_run, *more],
        f"{more[0]}: cannot be combined with --resume",
        "give only --steps, --corpus, --held-out, --workers, --stop-after",
    )


@pytest.mark.parametrize("name", ["not-there", "empty"])
def test_resume_of_no_run(name, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(["pretrain", "--resume", name], f"{name}: is not a run", "give a run's folder")
    assert not (tmp_path / "not-there").exists()


def test_resume_to_fewer_steps_than_were_made(refused, copied_run):
    before = (copied_run / "recipe.toml").read_text("utf-8")
    refused(
        ["pretrain", "--resume", copied_run, "--steps", 3],
        "--steps 3: is less than the 8 steps already made; give more",
    )
    assert (copied_run / "recipe.toml").read_text("utf-8") == before


def test_resume_with_a_bad_stop_after_changes_nothing(bertmill, copied_run):
    before = (copied_run / "recipe.toml").read_text("utf-8")
    status, _, err = bertmill(
        "pretrain", "--resume", copied_run, "--steps", 20, "--stop-after", "soon"
    )
    assert status == 2
    check_line(err, ["--stop-after: 'soon' is not a length of time"])
    assert (copied_run / "recipe.toml").read_text("utf-8") == before


def test_resume_of_a_run_by_time_with_steps(refused, copied_run):
    facts = json.loads((copied_run / "run.json").read_text("utf-8"))
    (copied_run / "run.json").write_text(json.dumps({**facts, "budget_seconds": 60.0}), "utf-8")
    refused(
        ["pretrain", "--resume", copied_run, "--steps", 20],
        "--steps: the run has a time budget; leave --steps out",
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"store": 3}'])
def test_resume_of_a_run_whose_facts_are_damaged(content, refused, copied_run):
    (copied_run / "run.json").write_text(content, "utf-8")
    refused(["pretrain", "--resume", copied_run], f"{copied_run}/run.json: ", "; ")


def test_resume_of_a_run_whose_recipe_is_damaged(refused, copied_run):
    (copied_run / "recipe.toml").write_text("[train\n", "utf-8")
    refused(["pretrain", "--resume", copied_run], f"{copied_run}/recipe.toml: is not TOML")


def test_metrics_that_are_damaged(refused, copied_run):
    with (copied_run / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("{broken\n")
    refused(["inspect", copied_run], f"{copied_run}/metrics.jsonl")


def test_resume_with_damaged_checkpoints_alone(bertmill, copied_run):
    for state in (copied_run / "checkpoints").glob("*/state.json"):
        state.write_text("{}", "utf-8")
    status, out, err = bertmill("pretrain", "--resume", copied_run)
    assert status == 2
    assert "is damaged" in out  # each checkpoint that was passed over
    check_line(err, [f"{copied_run}: has no undamaged checkpoint", "start again in another folder"])


def test_resume_over_another_text(bertmill, copied_run, corpus_file, tmp_path):
    """The store is gone and the text has changed since: going on would mix two corpora."""
    facts = json.loads((copied_run / "run.json").read_text("utf-8"))
    changed = tmp_path / "changed.txt"
    changed.write_text(corpus_file.read_text("utf-8").replace("river", "rover"), "utf-8")
    facts |= {"corpus": [str(changed)], "store": str(tmp_path / "gone")}
    (copied_run / "run.json").write_text(json.dumps(facts), "utf-8")
    status, _, err = bertmill("pretrain", "--resume", copied_run)
    assert status == 2
    check_line(err, [copied_run, "is not the one that the run began with", "bring the old text"])


def test_resume_of_a_run_whose_pairs_were_made_by_another_rule(bertmill, copied_run):
    """Runs of earlier versions do not say which rule it was."""
    assert 'kind = "segments"' in (copied_run / "recipe.toml").read_text("utf-8")
    facts = json.loads((copied_run / "run.json").read_text("utf-8"))
    assert facts.pop("segments_rule") == 2
    (copied_run / "run.json").write_text(json.dumps(facts), "utf-8")
    status, _, err = bertmill("pretrain", "--resume", copied_run)
    assert status == 2
    check_line(err, [copied_run, "was begun by an earlier version", "start a new run"])


HOLD_THE_LOCK = """
import fcntl, sys
stream = open(sys.argv[1], "a")
fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_resume_of_a_run_that_another_process_writes(refused, copied_run):
    command = [sys.executable, "-c", HOLD_THE_LOCK, copied_run / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        refused(
            ["pretrain", "--resume", copied_run],
            f"{copied_run}: is in use by another process; wait until",
        )
        holder.stdin.close()
        assert holder.wait(10) == 0


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["pretrain"], ["--corpus: is missing; give a file or folder, or sample:sotu"]),
        (["pretrain", "--corpsu", "x"], ["No such option", "--corpsu", "--corpus"]),
        (["pretrain", "--corpus"], ["--corpus", "requires an argument"]),
        (
            ["pretrain", "--corpus", "x", "--steps", "0"],
            ["'--steps': ", "greater than or equal to 1"],
        ),
        (["pretrain", "--corpus", "x", "--steps", "ten"], ["'--steps': ", "valid integer"]),
        (
            ["pretrain", "--corpus", "x", "--workers", "0"],
            ["'--workers': ", "greater than or equal to 1"],
        ),
        (
            ["pretrain", "--corpus", "sample:sotu", "--steps", "5", "--budget", "10m"],
            ["--budget: cannot be combined with --steps; give one of the two"],
        ),
        (["pretrian"], ["No such command", "pretrian"]),
        (["prepare", "--out", "store"], ["Missing option", "--corpus"]),
        (["prepare", "--corpus", "x"], ["Missing option", "--out"]),
        (["inspect"], ["Missing argument"]),
        (
            ["inspect", "not-there"],
            ["not-there: does not exist; give a recipe (base, continue, d2l"],
        ),
        (["encode"], ["Missing argument"]),
        (["encode", "not-there"], ["Missing argument"]),
        (["encode", "a", "b", "c", "d"], ["unexpected extra argument"]),
        (["fill-mask", "not-there"], ["Missing argument"]),
        (["fill-mask", "x", "[MASK]", "--top", "0"], ["'--top': ", "greater than or equal to 1"]),
        (["--nonsense"], ["No such option", "--nonsense"]),
    ],
)
def test_bad_options(args, parts, refused):
    refused(args, *parts)


@pytest.mark.parametrize("option", ["--budget", "--stop-after"])
@pytest.mark.parametrize("length", ["soon", "0", "-5s", "10x", ""])
def test_bad_length_of_time(option, length, refused, corpus_file, tmp_path):
    refused(
        ["pretrain", "--corpus", corpus_file, option, length],
        f"{option}: {length!r} is not a length of time; write 90s, 10m, 1h30m or 7d",
    )
    assert list(tmp_path.iterdir()) == []


def test_no_verb_prints_the_help(bertmill):
    _, out, err = bertmill()
    assert (out + err).count("\n") > 5  # as it is laid out, not squeezed into a line
    assert "fill-mask" in out + err


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["encode"], ["fill-mask"]])
def test_model_folder_that_is_none(verb, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused([*verb, "not-there", "[MASK]"], "not-there: does not exist; give a run folder or a")
    refused([*verb, "empty", "[MASK]"], "empty: is not a run or model folder", "give ano")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "gpt2"}, ["model_type is 'gpt2', not 'bert'", "give a BERT folder"]),
        ({"model_type": None}, ["model_type is None, not 'bert'", "give a BERT folder"]),
        (
            {"position_embedding_type": "relative_key"},
            ["position_embedding_type 'relative_key' is not supported", "absolute positions"],
        ),
        ({"hidden_act": "swish"}, ["hidden_act is 'swish'", "'gelu' or 'relu'"]),
        ({"hidden_size": 32}, ["has shape (200, 16), not (200, 32)", "config.json"]),
        ({"num_attention_heads": 3}, ["num_attention_heads=3 does not divide hidden_size=16"]),
        ({"vocab_size": "many"}, ["vocab_size is 'many'", "fetch the folder again"]),
        ({"vocab_size": -1}, ["vocab_size", "; "]),
    ],
)
def test_config_that_we_cannot_compute(changes, parts, refused, copied_model):
    config = json.loads((copied_model / "config.json").read_text("utf-8"))
    (copied_model / "config.json").write_text(json.dumps(config | changes), "utf-8")
    refused(["encode", copied_model, "the river"], copied_model, *parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("config.json", b"{", ["config.json: is damaged", "fetch the folder again"]),
        ("config.json", b"[]", ["config.json: is damaged (Input should be an object)", "fetch"]),
        ("model.safetensors", b"", ["model.safetensors: cannot be read", "fetch"]),
        ("tokenizer.json", b"{", ["is not a tokenizer"]),
        ("tokenizer_config.json", b"{", ["tokenizer_config.json: is not JSON", "fetch the folder"]),
    ],
)
def test_damaged_model_folder(name, content, parts, refused, copied_model):
    (copied_model / name).write_bytes(content)
    refused(["encode", copied_model, "the river"], *parts)


def test_truncated_weights(refused, copied_model):
    weights = copied_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(
        ["encode", copied_model, "the river"],
        f"{weights}: cannot be read",
        "fetch the folder again",
    )


def test_model_folder_without_weights(refused, copied_model):
    (copied_model / "model.safetensors").unlink()
    refused(["encode", copied_model, "the river"], "has no model.safetensors")


def test_tokenizer_larger_than_the_model(refused, copied_model):
    with (copied_model / "vocab.txt").open("a", encoding="utf-8") as stream:
        stream.write("zebra\n")
    (copied_model / "tokenizer.json").unlink()
    refused(["encode", copied_model, "the river"], "the tokenizer has", "put the tokenizer that")


@pytest.mark.parametrize(
    "args",
    [["inspect", "x" * 300], ["encode", "x" * 300, "a"], ["pretrain", "--corpus", "x" * 300]],
)
def test_a_name_that_is_too_long_for_a_file(args, bertmill):
    status, out, err = bertmill(*args)
    assert (status, out) == (2, "")
    assert err.startswith("bertmill: ") and err.count("\n") == 1


@pytest.mark.parametrize("verb", ["encode", "fill-mask"])
def test_text_longer_than_the_positions(verb, refused, small_run):
    refused(
        [verb, small_run.folder, "[MASK] " + "river " * 600],
        "tokens, but the model takes 512",
    )


def test_text_without_a_mask(refused, small_run):
    refused(
        ["fill-mask", small_run.folder, "the river"],
        "TEXT: has no [MASK]; write [MASK] where a word is missing",
    )


def test_more_proposals_than_there_are_words(refused, small_run):
    refused(["fill-mask", small_run.folder, "[MASK]", "--top", 10**6], "top: is 1000000; give 1 to")


def test_argument_that_is_not_utf8(refused, small_run):
    # Python stands a byte that is not UTF-8 in an argument for half a character.
    refused(
        ["encode", small_run.folder, "the \udcff"],
        "text: has a lone surrogate (half a character)",
        "delete it",
    )


# --- in processes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["pretrian"], ["No such command", "pretrian"]),
        (["pretrain", "--corpus", "not-there.txt"], ["not-there.txt: does not exist"]),
        pytest.param(
            ["fill-mask", "not-there", "[MASK]", "--json"],
            ["not-there: does not exist"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_process(args, parts, tmp_path):
    command = [sys.executable, "-m", "bertmill", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    check_line(done.stderr, parts)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_found_before_torch_is_imported(small_run, corpus_file, tmp_path):
    """It takes seconds, in which nobody should wait for "does not exist"."""
    (tmp_path / "there").touch()
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": "b"}\n', "utf-8")
    run, text, new = str(small_run.folder), str(corpus_file), ["--out", "new"]
    gone = "does not exist"
    wrong = [
        (["pretrain", "--corpus", "gone"], gone),
        (["pretrain", "--corpus", text, "--held-out", "gone"], gone),
        (["pretrain", "--corpus", text, "--init-from", "gone"], gone),
        (["pretrain", "--corpus", text, "--tokenizer", "gone"], gone),
        (["pretrain", "--corpus", text, "--recipe", "gone"], "neither a known name nor a file"),
        (["pretrain", "--corpus", text, "--set", "train.step=1"], "is not a known key"),
        (["pretrain", "--corpus", text, "--budget", "soon"], "is not a length of time"),
        (["pretrain", "--resume", "gone"], "is not a run"),
        (["prepare", "--corpus", "gone", *new], gone),
        (["prepare", "--corpus", text, "--out", "there"], "already exists"),
        (["encode", "gone", "text"], gone),
        (["embed", "gone", "data.jsonl", "--out", "new.npy"], gone),
        (["embed", run, "gone", "--out", "new.npy"], gone),
        (["embed", run, "data.jsonl", "--out", "there"], "already exists"),
        (["similar-words", run, "text", "--word", "text", "--among-file", "gone"], gone),
        (["similar-words", run, "text", "--word", "text"], "has no texts to search"),
        (["fill-mask", "gone", "text"], gone),
        (["evaluate", run, "--held-out", "gone"], gone),
        (["evaluate", run, "--minimal-pairs", "gone"], gone),
        (["evaluate", run, "--tasks", "gone"], "is not a folder"),
        (["finetune", run, "--train", "gone", "--dev", "data.jsonl", *new], gone),
        (["finetune", run, "--train", "data.jsonl", "--dev", "gone", *new], gone),
        (
            ["finetune", run, "--train", "data.jsonl", "--dev", "data.jsonl", "--out", "there"],
            "alr",
        ),
        (
            ["finetune", run, "--train", "data.jsonl", "--dev", "data.jsonl", *new, "--lr", "0"],
            "ab",
        ),
        (["predict", "gone", "data.jsonl", "--out", "new.csv"], gone),
        (["predict", run, "data.jsonl", "--out", "there"], "already exists"),
        (["export", "gone", *new], gone),
        (["export", run, "--out", "there"], "already exists"),
        (["export", run, "--to", "onnx", "--set", "pairs.kind=none", *new], "give --held-out too"),
        (["cache", "--older-than", "soon"], "is not a length of time"),
    ]
    program = """
import json, sys
from bertmill.cli import main
for args in json.loads(sys.argv[1]):
    sys.argv = ["bertmill", *args]
    try:
        main()
    except SystemExit as end:
        assert end.code == 2, args
    assert "torch" not in sys.modules, args
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([args for args, _ in wrong])],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    for (args, part), line in zip(wrong, lines, strict=True):
        assert part in line, args
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "there"]


@pytest.mark.parametrize("args", [["-h"], ["--help"], ["pretrain", "-h"], ["evaluate", "--help"]])
def test_help(args, bertmill):
    status, out, err = bertmill(*args)
    assert (status, err) == (0, "") and out.startswith("Usage: ") and "-h, --help" in out


def test_version(bertmill):
    assert bertmill("--version") == (0, f"bertmill {package.__version__}\n", "")
    assert "--version" in bertmill("-h")[1]


def test_arguments_are_utf8_in_every_locale(tmp_path):
    """Python reads them as ASCII with half characters where the user has switched UTF-8 off."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "é").mkdir()
    command = [sys.executable, "-m", "bertmill", "prepare", "--corpus", "é", "--out", "ü"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith("bertmill: é: is a folder without text; ")


def test_a_count_that_is_too_small_in_python(small_run, tmp_path):
    with pytest.raises(InputError, match="`seeds`: is 0; give 1 or more"):
        package.evaluate_tasks(small_run.folder, tmp_path, seeds=0)
    with pytest.raises(InputError, match="`seed`: is -1; give 0 or more"):
        package.pretrain("sample:sotu", seed=-1)
