"""The command line: verbs that call the function of the same name and print what it returns.

Exit status: 0 done; 2 the user can fix it, told in one line on standard error; 1 a bug of ours;
130 or 143 interrupted by SIGINT or SIGTERM, with the run's state saved.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bertmill.errors import BertmillError
from bertmill.openmp import limit_spinning

if TYPE_CHECKING:
    from bertmill.api import (
        AllTaskScores,
        FrozenScores,
        HeldOutScores,
        MinimalPairScores,
        Run,
    )

# What may befall any file at any moment, and is no bug.
_FAULTS_OF_THE_MACHINE = {
    errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS
}  # fmt: skip
_MEND_THE_MACHINE = (
    "make room or raise the limit (ulimit -n); a run that has begun goes on with --resume"
)

app = typer.Typer(
    name="bertmill",
    help="Pretrain BERT encoders end to end: raw text, tokenizer, pairs with masks, two losses, "
    "an encoder in use.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Corpus = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        help="File, folder, glob or URL of .txt, .tokens, .jsonl or .parquet (also .gz .xz .zst), "
        "sample:sotu, or a store. May be repeated.",
    ),
]
_HeldOut = Annotated[
    list[str], typer.Option("--held-out", help="Text that training never sees. May be repeated.")
]
_RECIPES = "quick, tiny, mini, small, medium, base, large, d2l, continue, or a TOML file"
_Recipe = Annotated[str, typer.Option("--recipe", help=f"{_RECIPES}.")]
_Settings = Annotated[
    list[str], typer.Option("--set", help="Change the recipe: section.key=value. May be repeated.")
]
_Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Tokenizer folder or vocab.txt to use as it is.")
]
_Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that prepare long text. Default: a core each, 8 at most.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; all else to stderr.")]
_Model = Annotated[
    str, typer.Argument(help="Run folder, model folder or Hugging Face BERT folder.")
]
_File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help=".txt (a text a line), .jsonl, .csv, .tsv or .parquet (also .gz .xz .zst); -: stdin.",
    ),
]
_Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
_TextColumn = Annotated[
    str | None, typer.Option("--text-column", help="Default: text, sentence1, sentence, words.")
]
_TextBColumn = Annotated[
    str | None,
    typer.Option("--text-b-column", help="The second text. Default: text_b, sentence2, or none."),
]


@app.command()
def pretrain(
    corpus: _Corpus = [],  # noqa: B006 - typer copies it
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help=f"{_RECIPES}. Default: quick, with --init-from continue."),
    ] = None,
    held_out: _HeldOut = [],  # noqa: B006
    out: Annotated[
        str | None, typer.Option("--out", help="The run's folder. Default: runs/<recipe>-<n>.")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option("--init-from", help="Begin with this model's weights and tokenizer."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Parameter updates.")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Training time instead of steps: 90s, 10m.")
    ] = None,
    settings: _Settings = [],  # noqa: B006
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    tokenizer: _Tokenizer = None,
    workers: _Workers = None,
    resume: Annotated[str | None, typer.Option("--resume", help="Go on with this run.")] = None,
    stop_after: Annotated[
        str | None, typer.Option("--stop-after", help="Save and stop this session after: 55m.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Pretrain an encoder from raw text, or go on with a run."""
    from bertmill import api

    run = api.pretrain(
        corpus,
        recipe,
        held_out=held_out,
        out=out,
        init_from=init_from,
        steps=steps,
        budget=budget,
        settings=settings,
        seed=seed,
        tokenizer=tokenizer,
        workers=workers,
        resume=resume,
        stop_after=stop_after,
        stream=sys.stderr if as_json else None,
    )
    if as_json:
        _print_json(run.to_dict())
    else:
        _print_run(run)
    if run.outcome.stopped_by is not None:
        raise typer.Exit(128 + run.outcome.stopped_by)


@app.command()
def prepare(
    corpus: _Corpus,
    out: Annotated[str, typer.Option("--out", help="The store's folder, not there yet.")],
    recipe: _Recipe = "quick",
    held_out: _HeldOut = [],  # noqa: B006
    tokenizer: _Tokenizer = None,
    tokenizer_kind: Annotated[
        str | None, typer.Option("--tokenizer-kind", help="wordpiece or word.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", help="Entries at most.")] = None,
    settings: _Settings = [],  # noqa: B006
    workers: _Workers = None,
    as_json: _Json = False,
) -> None:
    """Make a token store of raw text."""
    from bertmill import api

    changes = list(settings)
    if tokenizer_kind is not None:
        changes.append(f"tokenizer.kind={tokenizer_kind}")
    if vocab_size is not None:
        changes.append(f"tokenizer.vocab_size={vocab_size}")
    api.prepare(
        corpus,
        out,
        recipe,
        held_out=held_out,
        settings=changes,
        tokenizer=tokenizer,
        workers=workers,
        stream=sys.stderr if as_json else None,
    )
    if as_json:
        _print_json(api.inspect(out, num_pairs=0))


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(help="Recipe, store, run or model folder.")],
    pairs: Annotated[int, typer.Option("--pairs", min=0, help="Sequences to show.")] = 3,
    as_json: _Json = False,
) -> None:
    """Show what is inside a recipe, store, run or model."""
    from bertmill import api

    found = api.inspect(target, pairs)
    if as_json:
        _print_json(found)
    else:
        _print_tree(found)


@app.command()
def encode(
    model: _Model,
    text: Annotated[str, typer.Argument(help="The first segment.")],
    text_b: Annotated[str | None, typer.Argument(help="The second segment.")] = None,
    as_json: _Json = False,
) -> None:
    """Compute a vector for every token of one or two segments."""
    from bertmill import api

    encoding = api.load(model).encode(text, text_b)
    if as_json:
        _print_json(
            {
                "shape": list(encoding.vectors.shape),
                "tokens": encoding.tokens,
                "words": encoding.words,
                "vectors": encoding.vectors.tolist(),
            }
        )
        return
    _print(f"vectors of shape {encoding.vectors.shape}")
    for token, vector in zip(encoding.tokens, encoding.vectors[0], strict=True):
        _print(f"{token:>16}  {'  '.join(f'{x:8.4f}' for x in vector[:5])}  ...")


@app.command()
def embed(
    model: _Model,
    source: _File = "-",
    *,
    out: Annotated[str, typer.Option("--out", help="New .npy or .parquet file.")],
    column: Annotated[str, typer.Option("--column", help="Where the texts are.")] = "text",
    pool: Annotated[
        str | None, typer.Option("--pool", help="mean or cls. Default: as the model says.")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Vectors of length 1, or as they are."),
    ] = None,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Compute a vector for each text of a file."""
    from bertmill import api

    done = api.embed(
        model,
        source,
        out,
        column=column,
        pool=pool,
        normalize=normalize,
        device=device,
        stream=sys.stderr if as_json else None,
    )
    if as_json:
        _print_json(asdict(done))
        return
    cut = f", {done.num_cut:,} of them cut" if done.num_cut else ""
    _print(
        f"{done.num_texts:,} texts{cut}, {done.texts_per_second:,.0f} texts/s: {done.out} "
        f"({done.num_texts:,} x {done.hidden_size})"
    )


@app.command()
def similar_words(
    model: _Model,
    text: Annotated[str, typer.Argument(help="A text with the word in it.")],
    word: Annotated[str, typer.Option("--word", help="The word.")],
    among: Annotated[
        list[str], typer.Option("--among", help="A text to search. May be repeated.")
    ] = [],  # noqa: B006
    among_file: Annotated[
        str | None, typer.Option("--among-file", help="A file of texts to search.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Words to show.")] = 10,
    figure: Annotated[
        str | None, typer.Option("--figure", help="New .png, .svg or .pdf to draw them to.")
    ] = None,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Rank words by how near they are to one in its context."""
    from bertmill import api

    found = api.similar_words(
        model,
        text,
        word,
        among=among,
        among_file=among_file,
        top=top,
        figure=figure,
        device=device,
    )
    if as_json:
        _print_json(
            {"text": text, "word": word, "similar": [similar._asdict() for similar in found]}
        )
        return
    for similar in found:
        _print(f"{similar.cosine:8.4f}  {similar.word}  ({similar.text})")


@app.command()
def fill_mask(
    model: _Model,
    text: Annotated[str, typer.Argument(help="A text with the mask token in it.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Proposals a mask.")] = 5,
    targets: Annotated[
        list[str], typer.Option("--target", help="Choose from these words. May be repeated.")
    ] = [],  # noqa: B006
    max_pieces: Annotated[
        int | None,
        typer.Option("--max-pieces", help="Propose whole words of up to so many pieces."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Propose words for the masks in a text."""
    from bertmill import api

    masks = api.load(model).fill_mask(text, top, targets=targets or None, max_pieces=max_pieces)
    if as_json:
        _print_json({"text": text, "masks": [[f._asdict() for f in mask] for mask in masks]})
        return
    for number, mask in enumerate(masks, 1):
        _print(f"mask {number}:" if len(masks) > 1 else "mask:")
        for filler in mask:
            _print(f"{filler.probability:8.2%}  {filler.token}")


@app.command()
def evaluate(
    model: _Model,
    held_out: Annotated[
        list[str],
        typer.Option("--held-out", help="Text, as a corpus, cut into pairs and masked here."),
    ] = [],  # noqa: B006
    frozen_pairs: Annotated[
        str | None,
        typer.Option("--frozen-pairs", help="A .jsonl file of word pairs with their masks drawn."),
    ] = None,
    minimal_pairs: Annotated[
        str | None,
        typer.Option("--minimal-pairs", help="A file with sentence_good and sentence_bad."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="A folder of labeled tasks: TASK/train.jsonl, TASK/dev..."),
    ] = None,
    settings: _Settings = [],  # noqa: B006
    mask_rest_of_word: Annotated[
        bool,
        typer.Option("--mask-rest-of-word", help="Minimal pairs: mask a word's later pieces too."),
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Tasks: repetitions.")] = 3,
    probe_only: Annotated[
        bool, typer.Option("--probe-only", help="Tasks: leave fine-tuning out.")
    ] = False,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Judge a model on text, minimal pairs or tasks."""
    from bertmill import api

    scores = api.evaluate(
        model,
        held_out=held_out,
        frozen_pairs=frozen_pairs,
        minimal_pairs=minimal_pairs,
        tasks=tasks,
        settings=settings,
        mask_rest_of_word=mask_rest_of_word,
        seeds=seeds,
        probe_only=probe_only,
        device=device,
        stream=sys.stderr if as_json else None,
    )
    if as_json:
        _print_json(asdict(scores))
    elif isinstance(scores, api.MinimalPairScores):
        _print_minimal_pairs(scores)
    elif isinstance(scores, api.AllTaskScores):
        _print_tasks(scores)
    else:
        _print_scores(scores)


@app.command()
def finetune(
    model: _Model,
    train: Annotated[str, typer.Option("--train", help=".jsonl, .csv, .tsv or .parquet.")],
    dev: Annotated[str, typer.Option("--dev", help="Examples that choose the best epoch.")],
    out: Annotated[str, typer.Option("--out", help="The new folder, not there yet.")],
    task: Annotated[
        str | None,
        typer.Option("--task", help="classification, regression or words. Default: by labels."),
    ] = None,
    text_column: _TextColumn = None,
    text_b_column: _TextBColumn = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Default: label or labels.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes at most.")] = 10,
    patience: Annotated[int, typer.Option("--patience", help="Epochs without a better score.")] = 2,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Examples in a step.")] = 32,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate. Default: by width.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Tokens of an example at most.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Fine-tune a model on labeled examples."""
    from bertmill import api

    tuned = api.finetune(
        model,
        train,
        dev,
        out,
        task=task,
        text_column=text_column,
        text_b_column=text_b_column,
        label_column=label_column,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        lr=lr,
        max_length=max_length,
        seed=seed,
        device=device,
        stream=sys.stderr if as_json else None,
    )
    if as_json:
        _print_json(asdict(tuned))
    else:
        _print(f"best: epoch {tuned.best_epoch}: {tuned.folder}")


@app.command()
def predict(
    model: _Model,
    source: _File = "-",
    *,
    out: Annotated[str, typer.Option("--out", help="New .jsonl, .csv or .parquet file.")],
    text_column: _TextColumn = None,
    text_b_column: _TextBColumn = None,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Answer for each text with a fine-tuned model."""
    from bertmill import api

    done = api.predict(
        model,
        source,
        out,
        text_column=text_column,
        text_b_column=text_b_column,
        device=device,
    )
    if as_json:
        _print_json(asdict(done))
    else:
        cut = f", {done.num_cut:,} of them cut" if done.num_cut else ""
        _print(f"{done.num_texts:,} texts{cut}: {done.out}")


@app.command()
def export(
    model: _Model,
    out: Annotated[str, typer.Option("--out", help="The new folder, not there yet.")],
    to: Annotated[str, typer.Option("--to", help="huggingface or onnx.")] = "huggingface",
    license: Annotated[
        str | None, typer.Option("--license", help="For the model card, such as apache-2.0.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: also weights of 8 bits; needs --held-out.")
    ] = False,
    held_out: Annotated[
        list[str], typer.Option("--held-out", help="onnx: text to judge the files on.")
    ] = [],  # noqa: B006
    settings: _Settings = [],  # noqa: B006
    as_json: _Json = False,
) -> None:
    """Write a model folder for other programs."""
    from bertmill import api

    stream = sys.stderr if as_json else None
    folder = api.export(
        model,
        out,
        to,
        license=license,
        int8=int8,
        held_out=held_out,
        settings=settings,
        stream=stream,
    )
    if to == "huggingface" and license is None:
        typer.echo(
            "no license is named, so nobody may use the model: --license apache-2.0, for example",
            err=True,
        )
    if as_json:
        _print_json({"folder": str(folder), "to": to})
    else:
        _print(f"{to}: {folder}")


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    limit_spinning()  # first: torch is imported by the verbs
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name or a word that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except BertmillError as error:
        typer.echo(f"bertmill: {error}", err=True)
        status = 2
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_MACHINE:
            raise
        where = error.filename or "this machine"
        typer.echo(f"bertmill: {where}: {error.strerror}; {_MEND_THE_MACHINE}", err=True)
        status = 2
    except typer.TyperException as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        verb = " ".join(sys.argv[1:2])
        verbs = [
            c.callback.__name__.replace("_", "-") for c in app.registered_commands if c.callback
        ]
        see = f"bertmill {verb} --help" if verb in verbs else "bertmill --help"
        typer.echo(f"bertmill: {message}; see: {see}", err=True)
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("bertmill: interrupted", err=True)
        status = 130
    sys.exit(status or 0)


def _print_run(run: Run) -> None:
    outcome = run.outcome
    if outcome.mlm_loss is not None:
        nsp = "" if outcome.nsp_loss is None else f", NSP loss {outcome.nsp_loss:.3f}"
        _print(f"MLM loss {outcome.mlm_loss:.3f}{nsp}")
    if outcome.pairs_per_second is not None:
        _print(f"{outcome.pairs_per_second:.1f} sentence pairs/s on {outcome.device}")
    if outcome.held_out is not None:
        _print_scores(outcome.held_out)
    state = "finished" if outcome.finished else "saved, not finished"
    _print(f"{state} at step {outcome.steps:,}: {run.folder}")
    if not outcome.finished:
        _print(f"go on with: bertmill pretrain --resume {run.folder}")


def _print_scores(scores: HeldOutScores | FrozenScores) -> None:
    level = "" if scores.no_context_nats is None else f" (no context {scores.no_context_nats:.3f})"
    _print(
        f"held-out: MLM loss {scores.mlm_loss:.3f}{level}, {scores.mlm_accuracy:.1%} of "
        f"{scores.num_predictions:,} masks right"
    )
    if (at_mask := getattr(scores, "mlm_loss_at_mask", None)) is not None:
        known = getattr(scores, "mlm_loss_at_mask_known", None)
        without = "" if known is None else f", {known:.3f} without unknown words"
        _print(f"held-out: MLM loss {at_mask:.3f} at the mask token{without}")
    if scores.nsp_loss is not None:
        levels = [f"label frequencies {scores.nsp_chance_nats:.3f}"]
        if scores.nsp_overlap_nats is not None:
            levels.append(
                f"shared words {scores.nsp_overlap_nats:.3f}, {scores.nsp_overlap_accuracy:.1%}"
            )
        _print(
            f"held-out: NSP loss {scores.nsp_loss:.3f} ({'; '.join(levels)}), "
            f"{scores.nsp_accuracy:.1%} of {scores.num_pairs:,} pairs right"
        )


def _print_minimal_pairs(scores: MinimalPairScores) -> None:
    for name, paradigm in scores.paradigms.items():
        _print(f"{paradigm.accuracy:8.1%}  {name}")
    ties = f"{scores.num_ties:,} ties, half a point each"
    _print(f"{scores.accuracy:8.1%}  all {scores.num_pairs:,} pairs ({ties})")
    if scores.num_pairs_with_unknown:
        _print(f"{scores.num_pairs_with_unknown:,} pairs have a word that the vocabulary lacks")


def _print_tasks(scores: AllTaskScores) -> None:
    width = 16
    _print(" " * 20 + "".join(f"{method:>{width}}" for method in scores.mean))
    for name, task in scores.tasks.items():
        shown = []
        for measures in task.methods.values():
            found = measures[task.main_measure]
            spread = "" if found.high is None else f" ± {found.high - found.mean:.3f}"
            shown.append(f"{found.mean:.3f}{spread}")
        _print(f"{name:<8}{task.main_measure:<12}" + "".join(f"{text:>{width}}" for text in shown))
    _print(f"{'mean':<20}" + "".join(f"{mean:>{width}.3f}" for mean in scores.mean.values()))


def _print_tree(values: dict[str, Any], indent: int = 0) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _print(f"{' ' * indent}{key}")
            _print_tree(value, indent + 2)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            _print(f"{' ' * indent}{key}")
            for item in value:
                _print_tree(item, indent + 2)
        else:
            shown = f"{value:,}" if isinstance(value, int) and abs(value) > 9999 else value
            _print(f"{' ' * indent}{key}: {shown}")


def _print(line: str) -> None:
    """Print a line; a reader that went away (``| head``) ends the program, quietly."""
    try:
        typer.echo(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def _print_json(values: dict[str, Any]) -> None:
    _print(json.dumps(values, default=str))
