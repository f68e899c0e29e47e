"""The command line: verbs that call the function of the same name and print what it returns.

Exit status: 0 done; 2 the user can fix it, told in one line on standard error; 1 a bug of ours;
130 or 143 interrupted by SIGINT or SIGTERM, with the run's state saved.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bertmill.errors import BertmillError

if TYPE_CHECKING:
    from bertmill.api import FrozenScores, HeldOutScores, Run

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
_RECIPES = "quick, tiny, mini, small, medium, base, large, d2l, or a TOML file"
_Recipe = Annotated[str, typer.Option("--recipe", help=f"{_RECIPES}.")]
_Settings = Annotated[
    list[str], typer.Option("--set", help="Change the recipe: section.key=value. May be repeated.")
]
_Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Tokenizer folder or vocab.txt to use as it is.")
]
_Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes that prepare text.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; all else to stderr.")]
_Model = Annotated[
    str, typer.Argument(help="Run folder, model folder or Hugging Face BERT folder.")
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
    workers: _Workers = 1,
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
    workers: _Workers = 1,
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
    """Show what is inside a recipe, a store, a run or a model folder."""
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
def fill_mask(
    model: _Model,
    text: Annotated[str, typer.Argument(help="A text with the mask token in it.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Proposals a mask.")] = 5,
    as_json: _Json = False,
) -> None:
    """Propose words for the masks in a text."""
    from bertmill import api

    masks = api.load(model).fill_mask(text, top)
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
    settings: _Settings = [],  # noqa: B006
    as_json: _Json = False,
) -> None:
    """Judge a model on text that it has not seen: both losses beside their yardsticks."""
    from bertmill import api

    scores = api.evaluate(
        model,
        held_out=held_out,
        frozen_pairs=frozen_pairs,
        settings=settings,
        stream=sys.stderr if as_json else None,
    )
    if as_json:
        _print_json(asdict(scores))
    else:
        _print_scores(scores)


@app.command()
def export(
    model: _Model,
    out: Annotated[str, typer.Option("--out", help="The new folder, not there yet.")],
    to: Annotated[str, typer.Option("--to", help="huggingface.")] = "huggingface",
    as_json: _Json = False,
) -> None:
    """Write a model folder for transformers and sentence-transformers."""
    from bertmill import api

    folder = str(api.export(model, out, to))
    if as_json:
        _print_json({"folder": folder, "to": to})
    else:
        _print(f"{to}: {folder}")


def main() -> NoReturn:
    """Run the command line and exit with its status."""
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
