"""What each verb prints: one JSON object, or lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertmill.evaluation.tasks import AllTaskScores

Arguments = dict[str, Any]
_TASK_WIDTH = 16


def to_values(function: str, result: Any, arguments: Arguments) -> Any:
    """Turn what a function of the api returned into a dictionary of plain values.

    Parameters
    ----------
    function : str
        Its name.
    result
        What it returned.
    arguments : dict
        What it was called with.
    """
    match function:
        case "pretrain" | "resume":
            return result.to_dict()
        case "prepare":
            from bertmill.show.contents import describe

            return describe(result.folder, 0)
        case "inspect":
            return result
        case "encode":
            return {
                "shape": list(result.vectors.shape),
                "tokens": result.tokens,
                "words": result.words,
                "vectors": result.vectors.tolist(),
            }
        case "similar_words":
            found = {"similar": [similar._asdict() for similar in result]}
            return {"text": arguments["text"], "word": arguments["word"], **found}
        case "fill_mask":
            masks = [[filler._asdict() for filler in mask] for mask in result]
            return {"text": arguments["text"], "masks": masks}
        case "export_huggingface" | "export_onnx":
            return {"folder": str(result), "to": function.removeprefix("export_")}
    return asdict(result)


def to_lines(function: str, result: Any, arguments: Arguments) -> Iterator[str]:
    """Turn what a function of the api returned into lines for people; arguments as above."""
    match function:
        case "pretrain" | "resume":
            from bertmill.show.summary import closing_lines

            yield from closing_lines(result.folder, result.outcome)
        case "cache":
            for verb, stores in (("kept", result.stores), ("removed", result.removed)):
                for store in stores:
                    use = "in use" if store.in_use else f"unused for {_days(store.seconds_unused)}"
                    made_of = ", ".join(store.corpus) or "damaged"
                    yield f"{verb:<8}{_megabytes(store.num_bytes):>12}  {use}  {made_of}"
            stores = f"{len(result.stores)} store{'s' * (len(result.stores) != 1)}"
            yield f"{result.folder}: {stores}, {_megabytes(result.num_bytes)}"
        case "inspect":
            from bertmill.show.tables import contents_lines

            yield from contents_lines(result, str(arguments["target"]))
        case "plan":
            from bertmill.show.tables import forecast_lines

            yield from forecast_lines(result)
        case "encode":
            yield f"vectors of shape {result.vectors.shape}"
            for token, vector in zip(result.tokens, result.vectors[0], strict=True):
                yield f"{token:>16}  {'  '.join(f'{x:8.4f}' for x in vector[:5])}  ..."
        case "predict" if str(result.out) == "-":
            return  # standard output has the rows
        case "embed" | "predict":
            cut = f", {result.num_cut:,} of them cut" if result.num_cut else ""
            speed = shape = ""
            if function == "embed":
                speed = f", {result.texts_per_second:,.0f} texts/s"
                shape = f" ({result.num_texts:,} x {result.hidden_size})"
            yield f"{result.num_texts:,} texts{cut}{speed}: {result.out}{shape}"
        case "similar_words":
            for similar in result:
                yield f"{similar.cosine:8.4f}  {similar.word}  ({similar.text})"
        case "fill_mask":
            for number, mask in enumerate(result, 1):
                yield f"mask {number}:" if len(result) > 1 else "mask:"
                for filler in mask:
                    yield f"{filler.probability:8.2%}  {filler.token}"
        case "evaluate_held_out":
            from bertmill.show.summary import score_lines

            yield from score_lines(result)
        case "evaluate_minimal_pairs":
            for name, paradigm in result.paradigms.items():
                yield f"{paradigm.accuracy:8.1%}  {name}"
            ties = f"{result.num_ties:,} ties, half a point each"
            yield f"{result.accuracy:8.1%}  all {result.num_pairs:,} pairs ({ties})"
            if unknown := result.num_pairs_with_unknown:
                yield f"{unknown:,} pairs have a word that the vocabulary lacks"
        case "evaluate_tasks":
            yield from _task_lines(result)
        case "finetune":
            yield f"best: epoch {result.best_epoch}: {result.folder}"
        case "export_huggingface" | "export_onnx":
            yield f"{function.removeprefix('export_')}: {result}"


def _days(seconds: float) -> str:
    hours = round(seconds / 3600)
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours} hours"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _task_lines(scores: AllTaskScores) -> Iterator[str]:
    yield " " * 20 + "".join(f"{method:>{_TASK_WIDTH}}" for method in scores.mean)
    for name, task in scores.tasks.items():
        cells = ""
        for measures in task.methods.values():
            found = measures[task.main_measure]
            spread = "" if found.high is None else f" ± {found.high - found.mean:.3f}"
            cells += f"{f'{found.mean:.3f}{spread}':>{_TASK_WIDTH}}"
        yield f"{name:<8}{task.main_measure:<12}{cells}"
    yield f"{'mean':<20}" + "".join(f"{mean:>{_TASK_WIDTH}.3f}" for mean in scores.mean.values())
