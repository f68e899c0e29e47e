"""What is inside a recipe, a store, a run or a model folder, in tables for people."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from bertmill.show.summary import RunSummary, lengths_of, summarize
from bertmill.train.forecast import Forecast, Span
from bertmill.train.metrics import Metrics
from bertmill.train.run_folder import RunFolder
from bertmill.train.validate import LOSS_NAMES, HeldOutScores

_WIDEST = 100
_MOST_ROWS = 12
_KEYS = 18
"""Width of the column of names."""
_ORDERS = {True: "second follows", False: "second is random", None: ""}

Row = tuple[str, str]


def contents_lines(found: Mapping[str, Any], target: str) -> Iterator[str]:
    """Show what `describe` found, in lines that fit the terminal.

    Parameters
    ----------
    found : dict
    target : str
        What was described; the curves of a run are read from it.
    """
    kind = found["kind"]
    yield f"{kind} {target}"
    if kind == "run":
        yield from _run(summarize(RunFolder(target)))
    if "splits" in found:
        columns = ("documents", "sentences", "tokens")
        counts = [
            [split, *(f"{values[f'num_{column}']:,}" for column in columns)]
            for split, values in found["splits"].items()
        ]
        yield from _table("Data", ["", *columns], counts)
        yield from _section("", [_tokenizer(found)])
    if "text" in found:
        yield from _section("Text", [("read as", _knobs(found["text"]))])
    if kind == "recipe":
        yield from _section("Model", [_size(found)])
    elif model := (found if kind == "model" else found.get("model")):
        yield from _section("Model", [_size(model), *_details(model, kind == "model")])
    if found.get("pairs"):
        heading = "Training sequences: [MASK](hidden), shown(replaced), kept(=)"
        samples = [(_ORDERS[sample["is_next"]], sample["text"]) for sample in found["pairs"]]
        seen = f"{found['seen_fraction']:.1%} of the tokens"
        yield from _section(heading, [*samples, ("an epoch sees", seen)])
    if "recipe" in found:
        (_, name), *sections = found["recipe"].items()
        if name == "continue":
            sections = [(key, knobs) for key, knobs in sections if key != "model"]
        rows = [(key, _knobs(knobs)) for key, knobs in sections if key != "phases"]
        rows += [
            (f"phase {n}", _knobs(knobs)) for n, knobs in enumerate(found["recipe"]["phases"], 1)
        ]
        yield from _section(f"Recipe {name}", rows)


def forecast_lines(found: Forecast) -> Iterator[str]:
    """Show what a run would take, in lines that fit the terminal."""
    yield f"recipe {found.recipe} on {found.num_devices:,} x {found.device}"
    phases = [
        f"{phase.steps:,} of {found.batch_size:,} x {phase.max_length:,} tokens"
        for phase in found.phases
    ]
    parts = {name: value for name, value in asdict(found.memory).items() if value}
    held = ", ".join(f"{name.replace('_', ' ')} {value / 1e9:.2g}" for name, value in parts.items())
    where = "in all" if found.device == "CPU" else "per device"
    at_once = (
        f"{found.micro_batch_tokens:,} tokens at once" if found.micro_batch_tokens else "whole"
    )
    twice = ", blocks computed twice" if found.recompute else ""
    times = f", {found.epochs:,.3g} times all of the text" if found.epochs is not None else ""
    mfu, peak = found.mfu, found.peak_flops / 1e12
    rows = {
        "steps": "; ".join(phases),
        "reads": f"{found.tokens:,} tokens{times}",
        "arithmetic": f"{found.flops:.3g} operations, {found.flops / found.tokens:.3g} a token",
        "memory": f"{found.memory.total / 1e9:.1f} GB {where}: {held}",
        "a step": f"each device's share is computed {at_once}{twice}",
        "time": f"{_range_of_time(found.seconds)}, at {mfu.low:.0%} to {mfu.high:.0%} of "
        f"{peak:g} TFLOP/s per device",
        "cost": "not known; give --price, dollars for a device and hour",
    }
    if found.dollars is not None and found.dollars_per_hour is not None:
        price = _range(found.dollars_per_hour, ",.2f")
        rows["cost"] = f"{_range(found.dollars, ',.0f')} dollars, at {price} per device and hour"
    yield from _section("", rows.items())
    assumed = (
        "assumed: every sequence is as long as its phase allows, nothing waits for data or for "
        "other devices; validation and checkpoints come on top"
    )
    yield from _section("", [("", line) for line in (assumed, *found.notes)])


def _range(span: Span, form: str) -> str:
    low, high = format(span.low, form), format(span.high, form)
    return low if low == high else f"{low} to {high}"


def _range_of_time(span: Span) -> str:
    """Give both ends in the largest unit of which the lower one is a whole."""
    units = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}
    unit = next((name for name, size in units.items() if span.low >= size), "seconds")
    inside = span.times(1 / units[unit])
    return f"{_range(inside, ',.1f' if inside.low < 100 else ',.0f')} {unit}"


def _section(heading: str, rows: Iterable[Row]) -> Iterator[str]:
    """Show names, each with a text that is wrapped beside it."""
    if heading:
        yield from ("", heading)
    wrapper = textwrap.TextWrapper(
        min(shutil.get_terminal_size().columns, _WIDEST),
        subsequent_indent=" " * (2 + _KEYS),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for name, text in rows:
        wrapper.initial_indent = f"  {name:<{_KEYS}}"
        yield from wrapper.wrap(text)


def _table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Show rows below their columns; a column without a name is aligned to the left."""
    yield from ("", heading)
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    forms = [f"{'>' if name else '<'}{width}" for name, width in zip(columns, widths, strict=True)]
    for row in (columns, *rows):
        cells = [f"  {cell:{form}}" for cell, form in zip(row, forms, strict=True)]
        yield "".join(cells).rstrip()


def _run(summary: RunSummary) -> Iterator[str]:
    recipe, facts = summary.recipe, summary.facts
    batch_size = recipe.train.batch_size
    budget = recipe.train.budget_seconds or facts.budget_seconds
    length = f"in a budget of {_duration(budget)}" if budget else f"of {recipe.train.steps:,}"
    metrics = summary.metrics
    seconds = metrics.train[-1].seconds if metrics.train else None
    took = "" if seconds is None else f", {_duration(seconds)} of training"
    share = f"{recipe.text.held_out_fraction:.0%} of the corpus"
    rows = {
        "steps": f"{metrics.last_step:,} {length}{took}",
        "batch": f"{batch_size:,} sequences of up to {lengths_of(recipe)} tokens",
        "corpus": ", ".join(facts.corpus),
        "held out": ", ".join(facts.held_out) or share,
        "first weights": facts.init_from.folder if facts.init_from else "random",
        "store": facts.store,
        "made with": ", ".join(f"{name} {each}" for name, each in facts.versions.items()),
    }
    yield from _section("", rows.items())
    if metrics.loss_kinds:
        yield from _curves(metrics)
    if metrics.scores is not None:
        yield from _scores(metrics.scores, metrics.held_out[-1].step)
    if summary.diagnosis:
        yield from _section("Diagnosis", [("", line) for line in summary.diagnosis])


def _curves(metrics: Metrics) -> Iterator[str]:
    """Show some rows of the curves: those of validations, where there are any."""
    train = {record.step: record for record in metrics.train}
    held_out = {record.step: record.scores for record in metrics.held_out}
    steps = list(held_out or train)
    every = -(-len(steps) // _MOST_ROWS)
    columns, rows = ["step"], []
    for kind in metrics.loss_kinds:
        columns += [f"train {kind}", "held-out"]
    for step in steps[::-every][::-1]:
        row = [f"{step:,}"]
        for kind in metrics.loss_kinds:
            for record in (train.get(step), held_out.get(step)):
                row.append(_number(getattr(record, f"{kind}_loss", None), ".3f"))
        rows.append([*row, _number(getattr(train.get(step), "pairs_per_second", None), ",.0f")])
    yield from _table("Losses, nats", [*columns, "pairs/s"], rows)


def _scores(scores: HeldOutScores, step: int) -> Iterator[str]:
    """Show the losses, each followed by the levels that it is compared with."""
    rows = []
    for each in scores.losses:
        count = f"{each.num_answers:,} {each.unit}"
        rows.append([LOSS_NAMES[each.kind], f"{each.loss:.3f}", f"{each.accuracy:.1%}", count])
        for name, nats, accuracy in each.levels:
            rows.append([f"  {name}", f"{nats:.3f}", _number(accuracy, ".1%", ""), ""])
    yield from _table(f"Held-out text, step {step:,}", ["", "loss", "right", "of"], rows)


def _size(found: Mapping[str, Any]) -> Row:
    """Say how large the network is, where that is known."""
    counts = found["parameters"]
    if counts is None and found["recipe"]["name"] == "continue":
        return "parameters", "those of the model that it begins with"
    if counts is None:
        return "parameters", "not known before the words of the text are"
    heads = f"{counts['total']:,} with the pretraining heads"
    return "parameters", f"{counts['encoder_with_pooler']:,} in the encoder, {heads}"


def _details(found: Mapping[str, Any], is_alone: bool) -> Iterator[Row]:
    """Say what else a model folder holds; of a run's model, what its recipe does not say."""
    yield "folder", found["folder"]
    yield "special tokens", " ".join(found["special_tokens"])
    if found["new_weights"]:
        yield "untrained", ", ".join(found["new_weights"])
    if is_alone:
        yield _tokenizer(found)
        yield "network", _knobs(found["model"])


def _tokenizer(found: Mapping[str, Any]) -> Row:
    identity = found["tokenizer_identity"][:12]
    return "tokenizer", f"{found['vocab_size']:,} entries, identity {identity}..."


def _knobs(values: Mapping[str, Any]) -> str:
    shown = {
        key: str(value).lower() if isinstance(value, bool | None) else str(value) or '""'
        for key, value in values.items()
    }
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _number(value: float | None, form: str, missing: str = "-") -> str:
    return missing if value is None else format(value, form)
