"""What each verb prints: one JSON object, or lines for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from bertmill.data.store import Store
    from bertmill.evaluation.minimal_pairs import MinimalPairScores
    from bertmill.evaluation.tasks import AllTaskScores
    from bertmill.train.loop import Run
    from bertmill.train.validate import HeldOutScores
    from bertmill.use.files import Embedded, FineTuned, Predicted
    from bertmill.use.fill_mask import Filler
    from bertmill.use.pretrained import Encoding
    from bertmill.use.similar import SimilarWord

Arguments = dict[str, Any]
_TASK_WIDTH = 16


def to_values(function: str, result: Any, arguments: Arguments) -> dict[str, Any]:
    """Turn what a function of the api returned into plain values.

    Parameters
    ----------
    function : str
        Its name.
    result
        What it returned.
    arguments : dict
        What it was called with.
    """
    if function in _VALUES:
        return _VALUES[function](result, arguments)
    return asdict(result)


def to_lines(function: str, result: Any, arguments: Arguments) -> Iterator[str]:
    """Turn what a function of the api returned into lines for people; arguments as above."""
    return _LINES[function](result, arguments)


def _run_lines(run: Run, _: Arguments) -> Iterator[str]:
    from bertmill.show.summary import closing_lines, summarize
    from bertmill.train.run_folder import RunFolder

    return closing_lines(summarize(RunFolder(run.folder)), run.outcome)


def _store_values(store: Store, _: Arguments) -> dict[str, Any]:
    from bertmill.show.contents import describe

    return describe(store.folder, 0)


def _contents_lines(found: dict[str, Any], arguments: Arguments) -> Iterator[str]:
    from bertmill.show.tables import contents_lines

    return contents_lines(found, str(arguments["target"]))


def _encoding_values(encoding: Encoding, _: Arguments) -> dict[str, Any]:
    return {
        "shape": list(encoding.vectors.shape),
        "tokens": encoding.tokens,
        "words": encoding.words,
        "vectors": encoding.vectors.tolist(),
    }


def _encoding_lines(encoding: Encoding, _: Arguments) -> Iterator[str]:
    yield f"vectors of shape {encoding.vectors.shape}"
    for token, vector in zip(encoding.tokens, encoding.vectors[0], strict=True):
        yield f"{token:>16}  {'  '.join(f'{x:8.4f}' for x in vector[:5])}  ..."


def _embedded_lines(done: Embedded, _: Arguments) -> Iterator[str]:
    yield (
        f"{done.num_texts:,} texts{_cut(done)}, {done.texts_per_second:,.0f} texts/s: {done.out} "
        f"({done.num_texts:,} x {done.hidden_size})"
    )


def _predicted_lines(done: Predicted, _: Arguments) -> Iterator[str]:
    yield f"{done.num_texts:,} texts{_cut(done)}: {done.out}"


def _cut(done: Embedded | Predicted) -> str:
    return f", {done.num_cut:,} of them cut" if done.num_cut else ""


def _similar_values(found: list[SimilarWord], arguments: Arguments) -> dict[str, Any]:
    return {
        "text": arguments["text"],
        "word": arguments["word"],
        "similar": [similar._asdict() for similar in found],
    }


def _similar_lines(found: list[SimilarWord], _: Arguments) -> Iterator[str]:
    for similar in found:
        yield f"{similar.cosine:8.4f}  {similar.word}  ({similar.text})"


def _mask_values(masks: list[list[Filler]], arguments: Arguments) -> dict[str, Any]:
    found = [[filler._asdict() for filler in mask] for mask in masks]
    return {"text": arguments["text"], "masks": found}


def _mask_lines(masks: list[list[Filler]], _: Arguments) -> Iterator[str]:
    for number, mask in enumerate(masks, 1):
        yield f"mask {number}:" if len(masks) > 1 else "mask:"
        for filler in mask:
            yield f"{filler.probability:8.2%}  {filler.token}"


def _score_lines(scores: HeldOutScores, _: Arguments) -> Iterator[str]:
    from bertmill.show.summary import score_lines

    return score_lines(scores)


def _minimal_pair_lines(scores: MinimalPairScores, _: Arguments) -> Iterator[str]:
    for name, paradigm in scores.paradigms.items():
        yield f"{paradigm.accuracy:8.1%}  {name}"
    ties = f"{scores.num_ties:,} ties, half a point each"
    yield f"{scores.accuracy:8.1%}  all {scores.num_pairs:,} pairs ({ties})"
    if scores.num_pairs_with_unknown:
        yield f"{scores.num_pairs_with_unknown:,} pairs have a word that the vocabulary lacks"


def _task_lines(scores: AllTaskScores, _: Arguments) -> Iterator[str]:
    yield " " * 20 + "".join(f"{method:>{_TASK_WIDTH}}" for method in scores.mean)
    for name, task in scores.tasks.items():
        shown = []
        for measures in task.methods.values():
            found = measures[task.main_measure]
            spread = "" if found.high is None else f" ± {found.high - found.mean:.3f}"
            shown.append(f"{found.mean:.3f}{spread}")
        cells = "".join(f"{text:>{_TASK_WIDTH}}" for text in shown)
        yield f"{name:<8}{task.main_measure:<12}{cells}"
    yield f"{'mean':<20}" + "".join(f"{mean:>{_TASK_WIDTH}.3f}" for mean in scores.mean.values())


def _finetuned_lines(tuned: FineTuned, _: Arguments) -> Iterator[str]:
    yield f"best: epoch {tuned.best_epoch}: {tuned.folder}"


def _exported_values(program: str) -> Callable[[Path, Arguments], dict[str, Any]]:
    return lambda folder, _: {"folder": str(folder), "to": program}


def _exported_lines(program: str) -> Callable[[Path, Arguments], Iterator[str]]:
    return lambda folder, _: iter([f"{program}: {folder}"])


_VALUES: dict[str, Callable[[Any, Arguments], dict[str, Any]]] = {
    "pretrain": lambda run, _: run.to_dict(),
    "resume": lambda run, _: run.to_dict(),
    "prepare": _store_values,
    "inspect": lambda values, _: values,
    "encode": _encoding_values,
    "similar_words": _similar_values,
    "fill_mask": _mask_values,
    "export_huggingface": _exported_values("huggingface"),
    "export_onnx": _exported_values("onnx"),
}
"""The others return a dataclass of plain values."""

_LINES: dict[str, Callable[[Any, Arguments], Iterator[str]]] = {
    "pretrain": _run_lines,
    "resume": _run_lines,
    "prepare": lambda store, _: iter([]),
    "inspect": _contents_lines,
    "encode": _encoding_lines,
    "embed": _embedded_lines,
    "similar_words": _similar_lines,
    "fill_mask": _mask_lines,
    "evaluate_held_out": _score_lines,
    "evaluate_minimal_pairs": _minimal_pair_lines,
    "evaluate_tasks": _task_lines,
    "finetune": _finetuned_lines,
    "predict": _predicted_lines,
    "export_huggingface": _exported_lines("huggingface"),
    "export_onnx": _exported_lines("onnx"),
}
