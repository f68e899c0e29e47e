"""Files in, files out: what `embed`, `finetune` and `predict` do with texts and models on disk."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bertmill.errors import InputError
from bertmill.model.folder import load_model, save_model
from bertmill.storage import folder_that_appears_whole, refuse_if_there, write_json
from bertmill.text.rows import read_rows, text_of
from bertmill.train.device import open_device
from bertmill.train.progress import RunProgress
from bertmill.use.examples import Columns, read_examples, read_texts, task_of
from bertmill.use.finetune import Epoch, learn_task
from bertmill.use.knobs import FinetuneKnobs
from bertmill.use.predictions import refuse_predictions_file, write_predictions
from bertmill.use.pretrained import Pretrained
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


def embed_file(
    model: Pretrained,
    source: str,
    out: Path,
    column: str,
    pool: str | None,
    normalize: bool | None,
    show: Callable[[str, None], None],
) -> Embedded:
    """Compute a vector for each text of a file, streamed to another file.

    Parameters
    ----------
    model : Pretrained
    source, out, column
        As `bertmill.embed` takes them.
    pool, normalize
        As in `Pretrained.embed`.
    show : callable
        Takes a line about how far it is, and None.

    Raises
    ------
    InputError
        No texts, an output that cannot be written, or another `pool`.
    CorpusError
        The source cannot be read.
    """
    width = model.model.section.hidden_size
    started = time.monotonic()
    num_texts = num_cut = 0
    rows = read_rows(source)
    with open_vectors(out, width) as write:
        while texts := [text_of(row, column) for row in itertools.islice(rows, _TEXTS_AT_ONCE)]:
            vectors, cut = model.embed_counted(texts, pool, normalize)
            write(texts, vectors)
            num_texts, num_cut = num_texts + len(texts), num_cut + cut
            rate = num_texts / (time.monotonic() - started)
            show(f"{num_texts:,} texts, {rate:,.0f} texts/s", None)
        if not num_texts:
            raise InputError(source, "holds no texts", "give a file with one text per line or row")
    seconds = time.monotonic() - started
    return Embedded(out, num_texts, width, num_cut, seconds, num_texts / seconds)


def finetune_on_files(
    model: str | Path,
    sources: tuple[str, str],
    out: Path,
    kind: str | None,
    columns: Columns,
    knobs: FinetuneKnobs,
    device: str,
    progress: RunProgress,
) -> FineTuned:
    """Fine-tune a model on one file, choose the best epoch on another, and write the folder.

    Parameters
    ----------
    model : str or Path
    sources : tuple of str
        The examples to learn from, and those that choose the epoch.
    out : Path
        The new folder.
    kind : str or None
        Of the task; None: as the labels are.
    columns : Columns
    knobs : FinetuneKnobs
    device : str
    progress : RunProgress

    Raises
    ------
    BertmillError
        Anything that the caller can fix.
    """
    refuse_if_there(out)
    loaded, where, started = load_model(model), open_device(device), time.monotonic()
    examples = read_examples(sources[0], columns, kind)
    task = task_of(examples, sources[0])
    dev_examples = read_examples(sources[1], columns, task.kind)
    classes = f", {len(task.labels)} classes" if task.labels else ""
    progress.say(f"{task.kind}: {len(examples):,} examples{classes}")
    tuned = learn_task(
        loaded,
        task,
        examples,
        dev_examples,
        knobs,
        where,
        progress.show,
        lambda epoch: progress.say(_describe(epoch)),
    )
    if tuned.num_cut:
        progress.say(f"{tuned.num_cut:,} examples are longer than allowed and were cut")
    best = max(tuned.history, key=lambda epoch: epoch.dev.quality)
    result = FineTuned(
        out,
        task.kind,
        task.labels,
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
        write_json(folder / _FINETUNE_FILE, report)
    return result


def _describe(epoch: Epoch) -> str:
    dev = epoch.dev
    right = "" if dev.accuracy is None else f", {dev.accuracy:.1%} right"
    correlation = "" if dev.pearson is None else f", correlation {dev.pearson:.3f}"
    return f"epoch {epoch.epoch}: loss {epoch.loss:.3f}, on dev {dev.loss:.3f}{right}{correlation}"


def predict_file(model: Pretrained, source: str, out: Path, columns: Columns) -> Predicted:
    """Answer for each text of a file with a fine-tuned model.

    Parameters
    ----------
    model : Pretrained
    source, out
        As `bertmill.predict` takes them.
    columns : Columns

    Raises
    ------
    BertmillError
        Anything that the caller can fix.
    """
    refuse_predictions_file(out)
    task = model.require_task_model().task
    first, second = read_texts(source, columns, task.kind, model.is_pair)
    predictions, num_cut = model.predict_counted(first, second)
    write_predictions(out, predictions)
    return Predicted(out, task.kind, len(first), num_cut)
