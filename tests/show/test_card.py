"""The page of an export: true, readable by the Hub's own parser, and silent on this machine."""

import json
import re
import shutil
import tomllib

import pytest
import yaml
from huggingface_hub import ModelCard

import bertmill as package
from bertmill import export_huggingface
from bertmill.errors import InputError
from bertmill.model.folder import load_model
from bertmill.model.pooling import default_pooling


def card_of(folder):
    text = (folder / "README.md").read_text("utf-8")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1]), text


def recipe_of(text):
    return tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "folder"
    return export_huggingface(small_run.folder, out, license="apache-2.0")


# --- the header ----------------------------------------------------------------------------------


def test_the_header_is_what_the_hub_reads(exported):
    header, text = card_of(exported)
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "language": "en",
        "license": "apache-2.0",
        "tags": ["bert", "bertmill", "sentence-transformers"],
    }
    card = ModelCard.load(exported / "README.md")
    assert card.data.to_dict() == header
    assert card.text.strip() == text.split("---\n", 2)[2].strip()


def test_a_license_that_is_not_named(small_run, exported, tmp_path):
    header, text = card_of(export_huggingface(small_run.folder, tmp_path / "out"))
    assert "license" not in header
    assert text.split("## License\n")[1].strip() == "Not named by whoever exported this model."
    with_license = card_of(exported)[1]
    assert with_license.split("## License\n")[1].strip() == "apache-2.0"
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license is None


@pytest.mark.parametrize("license", ["mit", "cc-by-sa-4.0", "gpl-3.0+", "bsl-1.0", "a" * 64])
def test_licenses(license, small_run, tmp_path):
    out = export_huggingface(small_run.folder, tmp_path / "out", license=license)
    assert card_of(out)[0]["license"] == license


@pytest.mark.parametrize(
    "license",
    ["", " ", "-mit", "mit license", "mit\nlanguage: de", "a: b", "[mit]", "mit#", "ü", "a" * 65],
)
def test_licenses_that_are_none(license, small_run, refused, tmp_path):
    args = ["export", small_run.folder, "--out", "out", f"--license={license}"]
    refused(args, "--license: ", "is not an identifier", "apache-2.0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("license", ["no", "null", "1.0", "0x10"])
def test_a_license_is_text_to_yaml(license, small_run, tmp_path):
    out = export_huggingface(small_run.folder, tmp_path / "out", license=license)
    assert card_of(out)[0]["license"] == license


@pytest.mark.parametrize(
    "language",
    ["de", "no"],
)
def test_the_language_is_that_of_the_text(language, small_run, tmp_path):
    shutil.copytree(small_run.folder / "model", tmp_path / "model")
    about = tmp_path / "model" / "bertmill.json"
    values = json.loads(about.read_text("utf-8"))
    values["text"]["language"] = language
    about.write_text(json.dumps(values), "utf-8")
    out = export_huggingface(tmp_path / "model", tmp_path / "out")
    assert card_of(out)[0]["language"] == language


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        ("classification", "text-classification"),
        ("regression", "text-classification"),
        ("words", "token-classification"),
    ],
)
def test_fine_tuned_models(kind, tag, small_run, tmp_path):
    labels = {"classification": ["ü", "no"], "regression": [0.5, 1.5], "words": [["X"], ["O"]]}
    rows = [
        {"tokens" if kind == "words" else "text": ["a"] if kind == "words" else "a", "label": label}
        for label in labels[kind]
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tuned = package.finetune(small_run.folder, path, path, tmp_path / "tuned", epochs=1).folder
    header, text = card_of(package.export_huggingface(tuned, tmp_path / "out", license="mit"))
    assert header["pipeline_tag"] == tag
    told = {"classification": "no, ü", "words": "O, X"}
    assert ("Fine-tuned" in text) == (kind in told)
    if kind in told:
        assert f"Fine-tuned to tell apart: {told[kind]}.\n" in text
    assert "## Training" not in text and "# tuned\n" in text


# --- the text ------------------------------------------------------------------------------------


def test_the_sizes_are_those_of_the_model(small_run, exported):
    _, text = card_of(exported)
    loaded = load_model(small_run.folder)
    parts = (loaded.model.encoder, loaded.model.pooler)
    size = sum(tensor.numel() for part in parts for tensor in part.parameters())
    assert f"# {small_run.folder.name}\n" in text
    assert (
        f"2 layers, 16 wide, 2 heads, {loaded.tokenizer.size:,} vocabulary entries, {size:,} "
        f"parameters. Texts are cut to {default_pooling(loaded).max_length} tokens." in text
    )


def test_the_training_is_that_of_the_run(small_run, exported):
    _, text = card_of(exported)
    about = load_model(small_run.folder).about
    lines = (small_run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    last = [record for record in map(json.loads, lines) if record["split"] == "held_out"][-1]
    assert last["step"] == 8
    assert f"- Text: corpus.txt, {sum(about.token_counts):,} tokens\n" in text
    assert "- Recipe: tiny, 8 steps of 8 sequences of up to 32 tokens\n" in text
    assert "- Begun with: random weights\n" in text
    assert f"- Versions: bertmill {package.__version__}, torch " in text
    outcome = small_run.outcome.held_out
    assert (
        f"| masked language modeling, nats | {outcome.mlm_loss:.3f} | {outcome.mlm_accuracy:.1%} "
        f"| no context {outcome.no_context_nats:.3f} |\n" in text
    )
    assert (
        f"| next sentence prediction, nats | {outcome.nsp_loss:.3f} | {outcome.nsp_accuracy:.1%} "
        f"| label frequencies {outcome.nsp_chance_nats:.3f} |\n" in text
    )
    assert last["mlm_loss"] == pytest.approx(outcome.mlm_loss)


def test_the_recipe_is_the_runs(small_run, exported):
    found = recipe_of(card_of(exported)[1])
    with (small_run.folder / "recipe.toml").open("rb") as stream:
        assert found == tomllib.load(stream)


def test_the_picture_is_the_runs(small_run, exported, tmp_path):
    picture = (small_run.folder / "loss.png").read_bytes()
    assert (exported / "loss.png").read_bytes() == picture
    assert "](loss.png)\n" in card_of(exported)[1]
    copy = shutil.copytree(small_run.folder, tmp_path / "copy", symlinks=True)
    (copy / "loss.png").unlink()
    out = export_huggingface(copy, tmp_path / "out")
    assert not (out / "loss.png").exists() and "loss.png" not in card_of(out)[1]
    assert "# copy\n" in card_of(out)[1]


def test_a_model_folder_without_its_run(small_run, tmp_path):
    model = shutil.copytree(small_run.folder / "model", tmp_path / "alone")
    out = export_huggingface(model, tmp_path / "out")
    header, text = card_of(out)
    assert header["language"] == "en"
    assert "# alone\n" in text and "## Training" not in text and "toml" not in text
    assert not (out / "loss.png").exists()
    (model / "bertmill.json").unlink()
    header, text = card_of(export_huggingface(model, tmp_path / "other"))
    assert "language" not in header and "Texts are cut to 512 tokens" in text


def test_the_code_in_it_runs(exported, monkeypatch):
    """Each block, in the folder, as a reader would type it."""
    blocks = re.findall(r"```python\n(.*?)```", card_of(exported)[1], re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(exported)
    for block, (name, width) in zip(blocks, {"logits": 200, "vectors": 16}.items(), strict=True):
        names = {}
        exec(block, names)
        assert names[name].shape[-1] == width


def test_a_run_without_pairs_has_no_second_row(corpus_file, tmp_path):
    settings = ["tokenizer.vocab_size=200", "model.hidden_size=16", "model.num_attention_heads=2"]
    settings += [
        "model.intermediate_size=32",
        "train.batch_size=8",
        "train.precision=fp32",
        "pairs.kind=none",
        "text.held_out_fraction=0.2",
    ]
    run = package.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=2, settings=settings
    )
    text = card_of(export_huggingface(run.folder, tmp_path / "out"))[1]
    assert "masked language modeling, nats" in text
    assert "next sentence prediction, nats" not in text


@pytest.mark.parametrize(
    ("folder", "name"),
    [("runs/first/model", "first"), ("runs/first/best", "first"), ("models/theirs", "theirs")],
)
def test_the_run_that_it_began_with_is_named(folder, name, small_run, tmp_path):
    run = shutil.copytree(small_run.folder, tmp_path / "second", symlinks=True)
    facts = json.loads((run / "run.json").read_text("utf-8"))
    facts["init_from"] = {"folder": f"/home/me/{folder}", "sha256": "0" * 64}
    (run / "run.json").write_text(json.dumps(facts), "utf-8")
    _, text = card_of(export_huggingface(run, tmp_path / "out"))
    assert f"- Begun with: {name}\n" in text and "home" not in text


# --- nothing of this machine ---------------------------------------------------------------------


@pytest.fixture
def run_of_paths(small_run, corpus_file, tmp_path):
    """A run that was told about many places of this machine, by absolute paths."""

    def run(*corpus, place=tmp_path):
        (place / "recipes").mkdir()
        recipe = place / "recipes" / "mine.toml"
        text = (small_run.folder / "recipe.toml").read_text("utf-8")
        recipe.write_text(text.replace('name = "tiny"', 'name = "mine"'), "utf-8")
        shutil.copytree(small_run.folder / "model", place / "base")
        held_out = place / "unseen.txt"
        held_out.write_text(corpus_file.read_text("utf-8").upper(), "utf-8")
        return package.pretrain(
            list(corpus) or [str(shutil.copy(corpus_file, place / "books.txt"))],
            str(recipe),
            held_out=[held_out],
            init_from=place / "base",
            out=place / "run",
            steps=2,
            tokenizer=place / "base",
            settings=["text.held_out_fraction=0"],
        )

    return run


def secrets_in(folder, *secrets):
    """Files that tell one of these texts."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets)
    ]


def test_no_path_of_this_machine_is_told(run_of_paths, tmp_path):
    run = run_of_paths()
    facts = json.loads((run.folder / "run.json").read_text("utf-8"))
    assert facts["corpus"] == [str(tmp_path / "books.txt")]
    assert str(tmp_path) in (run.folder / "recipe.toml").read_text("utf-8")
    out = export_huggingface(run.folder, tmp_path / "out", license="mit")
    assert secrets_in(out, str(tmp_path), str(tmp_path.parent), "/tmp/") == []
    _, text = card_of(out)
    assert "- Text: books.txt, " in text and "- Begun with: base\n" in text
    assert "- Recipe: mine, 2 steps" in text
    recipe = recipe_of(text)
    assert recipe["tokenizer"]["path"] == "base"


def test_no_path_in_an_address_of_this_machine(run_of_paths, corpus_file, tmp_path):
    copy = shutil.copy(corpus_file, tmp_path / "books.txt")
    run = run_of_paths(f"file://{copy}")
    out = export_huggingface(run.folder, tmp_path / "out")
    assert secrets_in(out, str(tmp_path)) == []
    assert "- Text: books.txt, " in card_of(out)[1]


def test_addresses_stay():
    from bertmill.show.card import _public_name

    for name in ("sample:sotu", "https://example.org/books/all.txt", "hf://datasets/x/y.parquet"):
        assert _public_name(name) == name
    assert _public_name("/home/me/books/*.txt") == "*.txt"
    assert _public_name("/home/me/books/") == "books"


def test_no_card_is_left_where_the_run_is_damaged(small_run, tmp_path):
    copy = shutil.copytree(small_run.folder, tmp_path / "copy", symlinks=True)
    (copy / "run.json").write_text("{", "utf-8")
    with pytest.raises(package.BertmillError, match=r"run\.json"):
        export_huggingface(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    with pytest.raises(InputError, match="`license`: 'a b' is not an identifier; "):
        export_huggingface(copy, tmp_path / "out", license="a b")
