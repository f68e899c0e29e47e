"""The page that goes with an exported model: what it is, how it was trained, how good it is."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath

from bertmill.config import Recipe, recipe_to_toml
from bertmill.errors import InputError
from bertmill.model.folder import LoadedModel
from bertmill.model.pooling import Pooling
from bertmill.show.summary import RunSummary, lengths_of
from bertmill.train.validate import LOSS_NAMES, HeldOutScores

# Hugging Face's word for what a model is for, the class that opens it, and what that gives.
_TEXTS = ("text-classification", "AutoModelForSequenceClassification", "logits")
_PURPOSES = {
    "vectors": ("feature-extraction", "AutoModel", "last_hidden_state"),
    "masks": ("fill-mask", "AutoModelForMaskedLM", "logits"),
    "classification": _TEXTS,
    "regression": _TEXTS,
    "words": ("token-classification", "AutoModelForTokenClassification", "logits"),
}
_USE_TRANSFORMERS = """```python
from transformers import AutoTokenizer, {kind}

tokenizer, model = AutoTokenizer.from_pretrained("."), {kind}.from_pretrained(".")
{output} = model(**tokenizer("a text", return_tensors="pt")).{output}
```
"""
_USE_SENTENCE_TRANSFORMERS = """```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer(".").encode(["a text", "another"])
```
"""


def refuse_license(license: str | None) -> None:
    """Raise `InputError` unless this is an identifier such as ``apache-2.0``."""
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", license):
        raise InputError(
            "`license`", f"{license!r} is not an identifier", "write one such as apache-2.0"
        )


def write_model_card(
    folder: Path,
    loaded: LoadedModel,
    pooling: Pooling,
    summary: RunSummary | None,
    license: str | None,
) -> None:
    """Write ``README.md``, and a copy of the run's picture.

    Parameters
    ----------
    folder : Path
        Of the export.
    loaded : LoadedModel
    pooling : Pooling
    summary : RunSummary or None
        Of the run that trained it; None leaves data, recipe and losses out.
    license : str or None
    """
    section, about = loaded.model.section, loaded.about
    task = None if loaded.task_model is None else loaded.task_model.task
    has_head = "masked_token_head" not in loaded.new_parts
    purpose = ("masks" if has_head else "vectors") if task is None else task.kind
    pipeline, kind, output = _PURPOSES[purpose]
    header = ["library_name: transformers", f"pipeline_tag: {pipeline}"]
    if about is not None:
        header.append(f"language: {json.dumps(about.text.language)}")
    if license is not None:
        header.append(f"license: {json.dumps(license)}")
    header.append("tags: [bert, bertmill, sentence-transformers]")
    counts = loaded.model.count_parameters()
    text = [
        "---\n" + "\n".join(header) + "\n---\n",
        f"# {(summary or loaded).folder.resolve().name}\n",
        f"A BERT encoder made with bertmill: {section.num_hidden_layers} layers, "
        f"{section.hidden_size} wide, {section.num_attention_heads} heads, "
        f"{loaded.tokenizer.size:,} vocabulary entries, {counts['encoder_with_pooler']:,} "
        f"parameters. Texts are cut to {pooling.max_length} tokens.\n",
    ]
    if task is not None and task.labels:
        text.append(f"Fine-tuned to tell apart: {', '.join(task.labels)}.\n")
    text += ["## Use\n", _USE_TRANSFORMERS.format(kind=kind, output=output)]
    text.append(_USE_SENTENCE_TRANSFORMERS)
    if summary is not None:
        text += _training(summary, None if about is None else sum(about.token_counts))
        picture = summary.folder / "loss.png"
        if picture.is_file():
            (folder / picture.name).write_bytes(picture.read_bytes())
            text.append(f"![Both losses over the steps, beside their yardsticks]({picture.name})\n")
    text += ["## License\n", f"{license or 'Not named by whoever exported this model.'}\n"]
    (folder / "README.md").write_text("\n".join(text), "utf-8")


def _training(summary: RunSummary, num_tokens: int | None) -> list[str]:
    recipe, facts = summary.recipe, summary.facts
    tokens = f", {num_tokens:,} tokens" if num_tokens else ""
    steps, batch_size = summary.metrics.last_step, recipe.train.batch_size
    begun_with = "random weights"
    if facts.init_from is not None:
        source = PurePath(facts.init_from.folder)
        begun_with = (source.parent if source.name in ("model", "best") else source).name  # a run's
    lines = [
        "## Training\n",
        f"- Text: {', '.join(map(_public_name, facts.corpus))}{tokens}",
        f"- Recipe: {recipe.name}, {steps:,} steps of {batch_size:,} "
        f"sequences of up to {lengths_of(recipe)} tokens",
        f"- Begun with: {begun_with}",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in facts.versions.items())}\n",
    ]
    if summary.metrics.scores is not None:
        lines.append(_table(summary.metrics.scores))
    lines += ["<details><summary>The whole recipe</summary>\n", "```toml"]
    lines += [recipe_to_toml(_without_paths(recipe)).rstrip(), "```\n", "</details>\n"]
    return lines


def _table(scores: HeldOutScores) -> str:
    lines = ["| held-out | loss | right | yardstick |", "|---|---|---|---|"]
    for each in scores.losses:
        level = "".join(f"{level.name} {level.nats:.3f}" for level in each.levels[:1])
        name = f"{LOSS_NAMES[each.kind]}, nats"
        lines.append(f"| {name} | {each.loss:.3f} | {each.accuracy:.1%} | {level} |")
    return "\n".join(lines) + "\n"


def _public_name(source: str) -> str:
    """Shorten a path to its last part; leave user and query out of an address."""
    if source.startswith("sample:"):
        return source
    scheme, is_address, rest = source.rpartition("::")[2].partition("://")
    if not is_address or scheme == "file":
        return PurePath(source).name
    host, slash, path = re.split("[?#]", rest)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _without_paths(recipe: Recipe) -> Recipe:
    path = recipe.tokenizer.path
    tokenizer = recipe.tokenizer.model_copy(update={"path": path and _public_name(path)})
    return recipe.model_copy(update={"tokenizer": tokenizer})
