"""The encoder in use: vectors, tasks, other programs."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from bertmill.api.arguments import (
    Sources,
    list_sources,
    refuse_no_name,
    refuse_settings_without_text,
)
from bertmill.errors import InputError
from bertmill.exports.huggingface import export_huggingface
from bertmill.exports.onnx import export_onnx
from bertmill.model.folder import load_model, save_model
from bertmill.show.contents import describe
from bertmill.show.words import draw_similar_words, refuse_figure
from bertmill.storage import folder_that_appears_whole, refuse_if_there
from bertmill.text.rows import read_rows, text_of
from bertmill.train.device import open_device
from bertmill.train.progress import RunProgress
from bertmill.use.examples import Columns, read_examples, read_texts, task_of
from bertmill.use.finetune import Epoch, FinetuneKnobs, learn_task
from bertmill.use.predictions import refuse_predictions_file, write_predictions
from bertmill.use.pretrained import load
from bertmill.use.similar import SimilarWord
from bertmill.use.vectors import open_vectors

_TEXTS_AT_ONCE = 4096
_FINETUNE_FILE = "finetune.json"


@dataclass(frozen=True)
class Embedded:
    """What `embed` wrote."""

    out: Path
    num_texts: int
    hidden_size: int
    num_cut: int
    """Texts longer than the folder says or than it was trained on; their ends do not count."""
    seconds: float
    """Reading, computing and writing; without opening the model."""
    texts_per_second: float


@dataclass(frozen=True)
class FineTuned:
    """A model that was fine-tuned, and how it did."""

    folder: Path
    task: str
    labels: tuple[str, ...]
    num_train: int
    num_dev: int
    num_cut: int
    """Examples of both that were longer than allowed; their ends do not count."""
    best_epoch: int
    """Whose weights were kept."""
    epochs: tuple[Epoch, ...]
    seconds: float


@dataclass(frozen=True)
class Predicted:
    """What `predict` wrote."""

    out: Path
    task: str
    num_texts: int
    num_cut: int
    """Texts longer than the examples of fine-tuning could be; their ends do not count."""


def embed(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    column: str = "text",
    pool: str | None = None,
    normalize: bool | None = None,
    device: str = "auto",
    stream: IO[str] | None = None,
) -> Embedded:
    """Compute a vector for each text of a file, streamed to another file.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    source : str or Path
        ``.txt`` (a text a line, empty ones too), ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``,
        compressed or not; a folder, glob or URL of such; or ``-``, the lines of standard input.
    out : str or Path
        A new file: ``.npy`` (float32, [texts, hidden_size]) or ``.parquet`` (columns ``text`` and
        ``vector``). Its rows are in the order of the texts.
    column : str
        Where the texts are, in anything but lines.
    pool, normalize
        As in `Pretrained.embed`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    stream : file, optional
        Where progress goes; standard output by default.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    for option, value in (("FILE", source), ("--out", out)):
        refuse_no_name(option, value)
    loaded, out = load(model, device), Path(out)
    width = loaded.model.section.hidden_size
    started = time.monotonic()
    num_texts = num_cut = 0
    rows = read_rows(str(source))
    with RunProgress(stream) as progress, open_vectors(out, width) as write:
        while texts := [text_of(row, column) for row in itertools.islice(rows, _TEXTS_AT_ONCE)]:
            vectors, cut = loaded.embed_counted(texts, pool, normalize)
            write(texts, vectors)
            num_texts, num_cut = num_texts + len(texts), num_cut + cut
            rate = num_texts / (time.monotonic() - started)
            progress.show(f"{num_texts:,} texts, {rate:,.0f} texts/s", None)
        if not num_texts:
            raise InputError(source, "holds no texts", "give a file with a text a line or row")
    seconds = time.monotonic() - started
    return Embedded(out, num_texts, width, num_cut, seconds, num_texts / seconds)


def similar_words(
    model: str | Path,
    text: str,
    word: str,
    *,
    among: Sequence[str] = (),
    among_file: str | Path | None = None,
    top: int = 10,
    figure: str | Path | None = None,
    device: str = "auto",
) -> list[SimilarWord]:
    """Rank the words of other texts by how near their vectors are to a word's in `text`.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    text, word, top
        As in `Pretrained.similar_words`.
    among : sequence of str
        Texts.
    among_file : str or Path, optional
        A file with more of them, as `embed` reads it, in the column ``text``.
    figure : str or Path, optional
        A new ``.png``, ``.svg`` or ``.pdf`` to draw them to.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    texts = list(among)
    if among_file is not None:
        texts += [text_of(row, "text") for row in read_rows(str(among_file))]
    if not texts:
        raise InputError(
            "similar-words", "has no texts to search", "give --among TEXT or --among-file FILE"
        )
    if figure is not None:
        refuse_figure(Path(figure), top)
    found = load(model, device).similar_words(text, word, texts, top)
    if figure is not None:
        draw_similar_words(text, word, found, Path(figure))
    return found


def finetune(
    model: str | Path,
    train: str | Path,
    dev: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    text_column: str | None = None,
    text_b_column: str | None = None,
    label_column: str | None = None,
    epochs: int = FinetuneKnobs.epochs,
    patience: int = FinetuneKnobs.patience,
    batch_size: int = FinetuneKnobs.batch_size,
    lr: float | None = None,
    max_length: int | None = None,
    seed: int = FinetuneKnobs.seed,
    device: str = "auto",
    stream: IO[str] | None = None,
) -> FineTuned:
    """Fine-tune a model on labeled examples; the epoch that does best on `dev` is kept.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    train, dev : str or Path
        ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``, compressed or not. Words and their labels
        are lists, in ``.jsonl`` and ``.parquet``.
    out : str or Path
        A new folder, for `predict`. Where the network is BERT as published, ``transformers`` opens
        it too: ``BertForSequenceClassification``, or ``BertForTokenClassification`` for words.
    task : {"classification", "regression", "words"}, optional
        By default as the labels are: numbers written with a point (5.0, not 5) are regression,
        lists label words, all else are classes.
    text_column, text_b_column, label_column : str, optional
        By default ``text``, ``sentence1``, ``sentence``, ``words`` or ``tokens``; ``text_b`` or
        ``sentence2`` where there is one; and ``label`` or ``labels``.
    epochs : int
        Passes over the examples at most.
    patience : int
        Epochs without a better score on `dev` before it ends.
    batch_size : int
        Examples in a step.
    lr : float, optional
        Peak learning rate; by default higher the narrower the encoder is.
    max_length : int, optional
        Tokens of an example at most; by default as many as the encoder was trained on.
    seed : int
        The same one gives the same weights on the same machine's CPU.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    stream : file, optional
        Where progress goes; standard output by default.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    for option, value in (("--train", train), ("--dev", dev), ("--out", out)):
        refuse_no_name(option, value)
    out, columns = Path(out), Columns(text_column, text_b_column, label_column)
    refuse_if_there(out)
    knobs = FinetuneKnobs(epochs, patience, batch_size, lr, max_length, seed)
    loaded, where, started = load_model(model), open_device(device), time.monotonic()
    examples = read_examples(str(train), columns, task)
    asked = task_of(examples, str(train))
    dev_examples = read_examples(str(dev), columns, asked.kind)
    with RunProgress(stream) as progress:
        progress.say(
            f"{asked.kind}: {len(examples):,} examples"
            + (f", {len(asked.labels)} classes" if asked.labels else "")
        )
        tuned = learn_task(
            loaded,
            asked,
            examples,
            dev_examples,
            knobs,
            where,
            progress.show,
            lambda epoch: progress.say(_told(epoch)),
        )
        if tuned.num_cut:
            progress.say(f"{tuned.num_cut:,} examples are longer than allowed and were cut")
    best = max(tuned.history, key=lambda epoch: epoch.dev.quality)
    result = FineTuned(
        out,
        asked.kind,
        asked.labels,
        len(examples),
        len(dev_examples),
        tuned.num_cut,
        best.epoch,
        tuple(tuned.history),
        time.monotonic() - started,
    )
    max_length = knobs.length_for(loaded)
    with folder_that_appears_whole(out, InputError) as folder:
        save_model(folder, tuned.model, loaded.tokenizer, loaded.about, max_length=max_length)
        resolved = {**asdict(knobs), "lr": knobs.lr_for(loaded), "max_length": max_length}
        report = {**asdict(result), "folder": str(out), "knobs": resolved}
        (folder / _FINETUNE_FILE).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return result


def _told(epoch: Epoch) -> str:
    dev = epoch.dev
    right = "" if dev.accuracy is None else f", {dev.accuracy:.1%} right"
    correlation = "" if dev.pearson is None else f", correlation {dev.pearson:.3f}"
    return f"epoch {epoch.epoch}: loss {epoch.loss:.3f}, on dev {dev.loss:.3f}{right}{correlation}"


def predict(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    text_column: str | None = None,
    text_b_column: str | None = None,
    device: str = "auto",
) -> Predicted:
    """Answer for each text of a file with a fine-tuned model.

    Parameters
    ----------
    model : str or Path
        A folder that `finetune` wrote, or a fine-tuned BERT of Hugging Face.
    source : str or Path
        As `finetune` reads examples; labels are not needed.
    out : str or Path
        A new file, ``.jsonl``, ``.csv`` or ``.parquet``: a row a text, in their order, with
        ``label`` and ``probability``, with ``value``, or with ``labels`` and ``probabilities``.
    text_column, text_b_column : str, optional
        As in `finetune`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    for option, value in (("FILE", source), ("--out", out)):
        refuse_no_name(option, value)
    loaded, out = load(model, device), Path(out)
    refuse_predictions_file(out)
    task = loaded.require_task()
    first, second = read_texts(
        str(source), Columns(text_column, text_b_column), task.kind, loaded.is_pair
    )
    predictions, num_cut = loaded.predict_counted(first, second)
    write_predictions(out, predictions)
    return Predicted(out, task.kind, len(first), num_cut)


def export(
    model: str | Path,
    out: str | Path,
    to: str = "huggingface",
    *,
    license: str | None = None,
    int8: bool = False,
    held_out: Sources = (),
    settings: Sequence[str] = (),
    stream: IO[str] | None = None,
) -> Path:
    """Write a model folder for other programs.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    out : str or Path
        The new folder, which must not exist yet.
    to : {"huggingface", "onnx"}
        ``huggingface`` opens in ``transformers`` and ``sentence-transformers``, with a model card.
        ``onnx`` is the encoder for onnxruntime, compared with torch while it is written.
    license : str, optional
        With ``huggingface``: an identifier such as ``apache-2.0``, for the model card.
    int8 : bool
        With ``onnx``: also write the encoder with weights of 8 bits. What it costs is measured on
        `held_out`, which must be given.
    held_out : str, path, or sequence of them
        With ``onnx``: text to judge the files on, as in `evaluate`; ``onnx.json`` has the scores.
    settings : sequence of str
        With `held_out`, as in `evaluate`.
    stream : file, optional
        Where progress goes; standard output by default.

    Returns
    -------
    Path
        The new folder.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    refuse_no_name("--out", out)
    sources = list_sources(held_out, "--held-out")
    if to == "huggingface":
        if int8 or sources or settings:
            raise InputError(
                "--to huggingface", "takes no --int8, --held-out or --set", "use them with onnx"
            )
        return export_huggingface(model, out, license)
    if to != "onnx":
        raise InputError(f"--to {to!r}", "is not known", "give huggingface or onnx")
    if license is not None:
        raise InputError("--license", "is for the model card", "use it with --to huggingface")
    if int8 and not sources:
        raise InputError("--int8", "costs accuracy", "give --held-out text to measure it on")
    refuse_settings_without_text(settings, sources)
    with RunProgress(stream) as progress:
        return export_onnx(model, out, int8, sources, settings, progress.say)


def inspect(target: str | Path, num_pairs: int = 3) -> dict[str, Any]:
    """Describe what is inside a recipe, a store, a run or a model folder.

    Parameters
    ----------
    target : str or Path
    num_pairs : int
        Training sequences to show, masks visible, where there is a store.

    Returns
    -------
    dict
        Plain values; ``kind`` says which of the four it is.

    Raises
    ------
    BertmillError
        None of the four, or damaged.
    """
    return describe(target, num_pairs)
