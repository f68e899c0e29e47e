"""Text to store, and text to encoder."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from bertmill.api.arguments import Sources, list_sources, parse_duration, refuse_no_name
from bertmill.config import Recipe, load_recipe
from bertmill.data import prepare as preparing
from bertmill.data.store import Store
from bertmill.errors import InputError
from bertmill.show.curves import CurvesFile
from bertmill.train.loop import pretrain_loop
from bertmill.train.progress import RunProgress
from bertmill.train.run_folder import RunFolder
from bertmill.train.session import Outcome
from bertmill.train.start import DEFAULT_RECIPE, Plan, Request, plan_resume, plan_run


@dataclass(frozen=True)
class Run:
    """A pretraining run and what its last session came to."""

    folder: Path
    recipe: Recipe
    vocab_size: int
    train_documents: int
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``pretrain --json`` prints them."""
        return {
            "run": str(self.folder),
            "recipe": self.recipe.name,
            "vocab_size": self.vocab_size,
            "train_documents": self.train_documents,
            **asdict(self.outcome),
        }


def pretrain(
    corpus: Sources = (),
    recipe: str | Path | None = None,
    *,
    held_out: Sources = (),
    out: str | Path | None = None,
    init_from: str | Path | None = None,
    steps: int | None = None,
    budget: str | float | None = None,
    settings: Sequence[str] = (),
    seed: int | None = None,
    tokenizer: str | Path | None = None,
    workers: int | None = 1,
    resume: str | Path | None = None,
    stop_after: str | float | None = None,
    stream: IO[str] | None = None,
) -> Run:
    """Pretrain an encoder from raw text, or go on with a run.

    Parameters
    ----------
    corpus : str, path, or sequence of them
        Files, folders, globs, URLs, ``sample:sotu``, or one store that `prepare` made.
    recipe : str or Path
        A name that ships with bertmill, or a TOML file; by default ``quick``, or ``continue`` with
        `init_from`.
    held_out : str, path, or sequence of them
        Text that training never sees; by default a share of the corpus.
    out : str or Path, optional
        The run's folder; by default ``runs/<recipe>-<n>``.
    init_from : str or Path, optional
        A run, model folder or Hugging Face BERT folder to go on from, with its weights and its
        tokenizer, whatever the recipe's ``[tokenizer]`` says. Another tokenizer (`tokenizer`, a
        ``tokenizer.`` setting, or that of a prepared store) takes over the rows of the tokens that
        both know.
    steps : int, optional
        Parameter updates, instead of the recipe's. With `resume` it may grow: warm-up, hold and
        decay are from there on those of the new length.
    budget : str or float, optional
        Training time, ``"10m"`` or seconds, instead of steps.
    settings : sequence of str
        ``section.key=value`` changes to the recipe.
    seed : int, optional
        Instead of the recipe's.
    tokenizer : str or Path, optional
        A tokenizer folder or ``vocab.txt`` to use instead of training one.
    workers : int, optional
        Processes that prepare text, at most; None: as many as there are cores, up to 8, as the
        command does. They are started once the text is long enough for them to pay. More than one
        needs a script with a ``__main__`` guard, so that here it is 1 unless you ask for more.
    resume : str or Path, optional
        A run's folder: go on from its newest whole checkpoint. Only `steps` and `stop_after` may be
        given with it, and `corpus` and `held_out` where the text or the store has moved.
    stop_after : str or float, optional
        Save and stop this session after so long, counted from the call.
    stream : file, optional
        Where progress goes; standard output by default.

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
    started = time.monotonic()
    stop_at = _deadline(started, stop_after)
    with RunProgress(stream) as progress:
        if resume is not None:
            refuse_no_name("`resume`", resume)
            given = [recipe, settings or None, out, init_from, budget, seed, tokenizer]
            if any(value is not None for value in given):
                raise InputError(
                    "`resume`",
                    "takes `steps`, `stop_after`, `corpus`, `held_out` and `workers`; "
                    "the rest was fixed when the run began",
                    "start a new run to change it",
                )
            run = RunFolder(resume)
            moved = list_sources(corpus, "`corpus`"), list_sources(held_out, "`held_out`")
            run.read()  # a folder that is not a run gets no lock
            with run.locked():
                plan = plan_resume(run, steps, *moved, workers, stop_at, progress.say)
                return _train(plan, progress)
        names = {
            "`out`": out,
            "`recipe`": recipe,
            "`init_from`": init_from,
            "`tokenizer`": tokenizer,
        }
        for option, value in names.items():
            refuse_no_name(option, value)
        if steps is not None and budget is not None:
            raise InputError("`budget`", "`steps` and `budget` cannot be combined", "give one")
        sources = list_sources(corpus, "`corpus`")
        if not sources:
            raise InputError("`corpus`", "is missing", "give text, a store, or sample:sotu")
        request = Request(
            sources,
            list_sources(held_out, "`held_out`"),
            None if recipe is None else str(recipe),
            settings,
            steps,
            None if budget is None else parse_duration(budget, "`budget`"),
            seed,
            None if tokenizer is None else str(tokenizer),
            None if init_from is None else str(init_from),
            None if out is None else str(out),
            workers,
            stop_at,
        )
        plan = plan_run(request, progress.say)
        with plan.run.locked():
            plan.run.create(plan.recipe, plan.facts)
            return _train(plan, progress)


def _train(plan: Plan, progress: RunProgress) -> Run:
    curves, store = CurvesFile(progress.say), plan.data.store
    outcome = pretrain_loop(plan, progress, curves.update)
    curves.draw(plan.run)
    return Run(plan.run.path, plan.recipe, store.tokenizer.size, store.train.num_documents, outcome)


def _deadline(started: float, stop_after: str | float | None) -> float:
    """Return the reading of ``time.monotonic`` at which the session stops."""
    if stop_after is None:
        return math.inf
    return started + parse_duration(stop_after, "`stop_after`")


def prepare(
    corpus: Sources,
    out: str | Path,
    recipe: str | Path = DEFAULT_RECIPE,
    *,
    held_out: Sources = (),
    settings: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    workers: int | None = 1,
    stream: IO[str] | None = None,
) -> Store:
    """Make a token store of raw text; `pretrain` takes it as its corpus.

    Parameters
    ----------
    corpus, held_out, settings, tokenizer, workers, stream
        As in `pretrain`.
    out : str or Path
        The store's folder, which must not exist yet.
    recipe : str or Path
        Whose ``[text]`` and ``[tokenizer]`` sections apply.

    Returns
    -------
    Store

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    chosen = load_recipe(recipe, settings)
    if tokenizer is not None:
        refuse_no_name("--tokenizer", tokenizer)
        knobs = chosen.tokenizer.model_copy(update={"path": str(Path(tokenizer).absolute())})
        chosen = chosen.model_copy(update={"tokenizer": knobs})
    refuse_no_name("--out", out)
    with RunProgress(stream) as progress:
        return preparing.prepare(
            list_sources(corpus, "--corpus"),
            out,
            chosen.text,
            chosen.tokenizer,
            list_sources(held_out, "--held-out"),
            workers,
            progress.say,
        )
