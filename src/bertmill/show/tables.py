"""What is inside a recipe, a store, a run or a model folder, in tables for people."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bertmill.show.summary import RunSummary, summarize
from bertmill.train.run_folder import RunFolder
from bertmill.train.validate import LOSS_NAMES, HeldOutScores

_WIDEST = 100
_MOST_ROWS = 12
_KEYS = 18
"""Width of the column of names."""


def contents_lines(found: Mapping[str, Any], target: str) -> Iterator[str]:
    """Show what `describe` found, in lines that fit the terminal.

    Parameters
    ----------
    found : dict
    target : str
        What was described; the curves of a run are read from it.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=sys.stdout.isatty(), highlight=False)
    page = _Page(console)
    kind = found["kind"]
    page.title(f"{kind} {target}")
    if kind == "run":
        _show_run(page, summarize(RunFolder(target)))
    if "splits" in found:
        _show_splits(page, found)
    if "text" in found:
        page.section("Text", [("read as", _knobs(found["text"]))])
    if kind == "recipe":
        page.section("Model", _sizes(found))
    elif model := (found if kind == "model" else found.get("model")):
        page.section("Model", [*_sizes(model), *_details(model, kind == "model")])
    if found.get("pairs"):
        _show_samples(page, found["pairs"])
    if "recipe" in found:
        (_, name), *sections = found["recipe"].items()
        page.section(f"Recipe {name}", [(key, _knobs(knobs)) for key, knobs in sections])
    return (line.rstrip() for line in stream.getvalue().splitlines())


class _Page:
    """Titles, tables and wrapped text, one below the other."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def title(self, text: str) -> None:
        self._console.print(Text(text, "bold"), soft_wrap=True)

    def heading(self, text: str) -> None:
        self._console.print()
        self.title(text)

    def section(self, heading: str, rows: Iterable[tuple[str, str]]) -> None:
        """Print names, each with a text that is wrapped beside it."""
        if heading:
            self.heading(heading)
        room = self._console.width - _KEYS - 2
        for name, text in rows:
            lines = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False) or [
                ""
            ]
            for key, line in zip([name] + [""] * len(lines), lines, strict=False):
                self._console.print(Text(f"  {key:<{_KEYS}}{line}"), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows below their columns; a column without a name is aligned to the left."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
        table.add_column()
        for name in columns:
            table.add_column(name, justify="right" if name else "left", overflow="fold")
        for row in rows:
            table.add_row("", *map(Text, row))
        self._console.print(table)


def _show_run(page: _Page, summary: RunSummary) -> None:
    recipe, facts = summary.recipe, summary.facts
    budget = recipe.train.budget_seconds or facts.budget_seconds
    length = f"in a budget of {_duration(budget)}" if budget else f"of {recipe.train.steps:,}"
    seconds = summary.train[-1].seconds if summary.train else None
    took = "" if seconds is None else f", {_duration(seconds)} of training"
    page.section(
        "",
        [
            ("steps", f"{summary.steps:,} {length}{took}"),
            (
                "batch",
                f"{recipe.train.batch_size:,} sequences of up to "
                f"{recipe.pairs.max_length:,} tokens",
            ),
            ("corpus", ", ".join(facts.corpus)),
            (
                "held out",
                ", ".join(facts.held_out) or f"{recipe.text.held_out_fraction:.0%} of the corpus",
            ),
            ("first weights", facts.init_from.folder if facts.init_from else "random"),
            ("store", facts.store),
            ("made with", ", ".join(f"{name} {each}" for name, each in facts.versions.items())),
        ],
    )
    if summary.loss_kinds:
        page.heading("Losses, nats")
        page.table(*_curve_table(summary))
    if summary.scores is not None:
        page.heading(f"Held-out text, step {summary.held_out[-1].step:,}")
        page.table(*_score_table(summary.scores))
    if summary.diagnosis:
        page.section("Diagnosis", [("", line) for line in summary.diagnosis])


def _curve_table(summary: RunSummary) -> tuple[list[str], list[list[str]]]:
    """Lay out some rows of the curves: those of validations, where there are any."""
    train = {record.step: record for record in summary.train}
    curves = {
        f"{split} {kind}": dict(curve)
        for kind in summary.loss_kinds
        for split, curve in (
            ("train", summary.train_curve(kind)),
            ("held-out", summary.held_out_curve(kind)),
        )
    }
    steps = [record.step for record in summary.held_out] or list(train)
    every = -(-len(steps) // _MOST_ROWS)
    shown = [step for i, step in enumerate(reversed(steps)) if i % every == 0][::-1]
    rows = [
        [
            f"{step:,}",
            *(_number(curve.get(step), ".3f") for curve in curves.values()),
            _number(train[step].pairs_per_second if step in train else None, ",.0f"),
        ]
        for step in shown
    ]
    return ["step", *curves, "pairs/s"], rows


def _score_table(scores: HeldOutScores) -> tuple[list[str], list[list[str]]]:
    """Lay out the losses, each followed by the levels that it is compared with."""
    rows = []
    for each in scores.losses:
        count = f"{each.num_answers:,} {each.unit}"
        rows.append([LOSS_NAMES[each.kind], f"{each.loss:.3f}", f"{each.accuracy:.1%}", count])
        for name, nats, accuracy in each.levels:
            rows.append(
                [f"  {name}", f"{nats:.3f}", "" if accuracy is None else f"{accuracy:.1%}", ""]
            )
    return ["", "loss", "right", "of"], rows


def _show_splits(page: _Page, found: Mapping[str, Any]) -> None:
    page.heading("Data")
    counts = [
        [split, *(f"{values[f'num_{what}']:,}" for what in ("documents", "sentences", "tokens"))]
        for split, values in found["splits"].items()
    ]
    page.table(["", "documents", "sentences", "tokens"], counts)
    page.section("", [_tokenizer(found)])


def _sizes(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say how large the network is; not known for a vocabulary of words without its text."""
    counts = found["parameters"]
    if counts is None:
        return [("parameters", "not known before the words of the text are")]
    heads = f"{counts['total']:,} with the pretraining heads"
    return [("parameters", f"{counts['encoder_with_pooler']:,} in the encoder, {heads}")]


def _details(found: Mapping[str, Any], is_alone: bool) -> Iterator[tuple[str, str]]:
    """Say what else a model folder holds; of a run's model, what its recipe does not say."""
    yield "folder", found["folder"]
    yield "special tokens", " ".join(found["special_tokens"])
    if found["new_weights"]:
        yield "untrained", ", ".join(found["new_weights"])
    if is_alone:
        yield _tokenizer(found)
        yield "network", _knobs(found["model"])


def _tokenizer(found: Mapping[str, Any]) -> tuple[str, str]:
    identity = found["tokenizer_identity"][:12]
    return "tokenizer", f"{found['vocab_size']:,} entries, identity {identity}..."


def _show_samples(page: _Page, samples: Iterable[Mapping[str, Any]]) -> None:
    names = {True: "second follows", False: "second is random", None: ""}
    page.section(
        "Training sequences: [MASK](hidden), shown(replaced), kept(=)",
        [(names[sample["is_next"]], sample["text"]) for sample in samples],
    )


def _knobs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_knob(value)}" for key, value in values.items())


def _knob(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value) or '""'


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
