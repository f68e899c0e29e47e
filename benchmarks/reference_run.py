"""The reference's run, step by step: both losses, what the reference prints of them, yardsticks.

    python benchmarks/reference_run.py wiki.train.tokens.gz wiki.valid.tokens.gz --out RUN

Trains the `d2l` recipe for 50 steps and then goes on to 500, logging every step. At both ends the
losses of the next training batch, dropout off, are computed a second time: by `transformers`, over
the padded rectangles, with the reference's formula. Prints tables and draws `losses.png`. With
`--frozen-pairs FILE` both ends are judged on these, too.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from frozen_pairs import evaluate_frozen_pairs
from matplotlib.figure import Figure
from rectangles import pad_batch
from torch.nn import functional as F
from transformers import BertForPreTraining
from transformers.utils import logging

import bertmill
from bertmill.data.batch import Batch, Batches
from bertmill.data.overlap import OverlapRule
from bertmill.data.store import Store
from bertmill.model.folder import load_model
from bertmill.train.device import to_device
from bertmill.train.run_folder import RunFolder

SETTINGS = ["train.log_every_steps=1", "train.validation_pairs=1_000_000"]
LENGTH, PREDICTIONS = 64, 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("held_out")
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=[50, 500])
    parser.add_argument("--frozen-pairs", help="Judge both ends on these, too.")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks, judged = [], {}
    for step in args.steps:
        run = (
            bertmill.resume(args.out, steps=step)
            if checks
            else bertmill.pretrain(
                args.train,
                "d2l",
                held_out=args.held_out,
                out=args.out,
                steps=step,
                settings=SETTINGS,
            )
        )
        checks.append(check_formula(run.folder, step))
        if args.frozen_pairs:
            judged[step] = asdict(evaluate_frozen_pairs(run.folder, args.frozen_pairs))
    metrics = [r.to_dict() for records in RunFolder(run.folder).metrics() for r in records]
    first, last = args.steps
    print(table(metrics, [1, 10, 25, first, 100, 200, 300, 400, last]))
    columns = [c for c in checks[0] if c != "step"]
    print("\n| step | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for check in checks:
        print(f"| {check['step']} | " + " | ".join(f"{check[c]:.6f}" for c in columns) + " |")
    for step, scores in judged.items():
        print(f"\nfrozen pairs after {step} steps: {json.dumps(scores)}")
    print(f"\nshared words alone: {json.dumps(overlap(run.folder))}")
    draw(metrics, run.folder / "losses.png")
    report = {"machine": run.outcome.device, "formula": checks, "frozen": judged}
    (run.folder / "reference-run.json").write_text(json.dumps(report | {"metrics": metrics}) + "\n")


def open_batches(folder: Path) -> tuple[Store, Batches, Batches]:
    """Open the run's training and held-out pairs."""
    recipe, facts = RunFolder(folder).read()
    store = Store(facts.store)
    knobs = (store.tokenizer, recipe.pairs, recipe.masking, recipe.train.batch_size)
    train = Batches(store.train, *knobs, recipe.train.seed, "train")
    return store, train, Batches(store.held_out, *knobs, 0, "held out")


def overlap(folder: Path) -> dict[str, tuple[float, float]]:
    """Nats and share of right answers of the word-overlap rule, with the masks in place and undone.

    The reference's figure counts the words under the masks too, which no network sees.
    """
    store, train, held_out = open_batches(folder)
    fitted = [train.batch_at(step) for step in range(32)]
    scored = [held_out.batch_of(np.arange(held_out.num_examples))]
    found = {}
    for name, undo in (("as shown", False), ("masks undone", True)):
        parts = [[unmask(b) if undo else b for b in batches] for batches in (fitted, scored)]
        rule = OverlapRule.fit(parts[0], store.token_counts, store.tokenizer)
        found[name] = rule.score(parts[1], store.token_counts, store.tokenizer)
    return found


def unmask(batch: Batch) -> Batch:
    token_ids = batch.token_ids.copy()
    token_ids[batch.masked_at] = batch.masked_labels
    return replace(batch, token_ids=token_ids)


def check_formula(folder: Path, step: int) -> dict[str, float]:
    """Both losses of the batch that follows `step` updates: ours packed, the formula padded."""
    store, train, _ = open_batches(folder)
    batch = train.batch_at(step)
    model = load_model(folder).model
    theirs = BertForPreTraining.from_pretrained(folder / "model").eval()
    padded = pad_batch(batch, LENGTH, PREDICTIONS, store.tokenizer.pad_id)
    tokens, segments, lengths, at, weights, labels, is_next = map(torch.as_tensor, padded)
    with torch.no_grad():
        sums = model(to_device(batch, torch.device("cpu")))
        hidden = theirs.bert(
            tokens, attention_mask=torch.arange(LENGTH) < lengths[:, None], token_type_ids=segments
        )
        rows = hidden.last_hidden_state.gather(1, at[..., None].expand(-1, -1, 128))
        logits = theirs.cls.predictions(rows)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        mlm = (each * weights.flatten()).sum() / (weights.sum() + 1e-8)
        # Hugging Face's classifier puts "next" first.
        nsp = F.cross_entropy(theirs.cls.seq_relationship(hidden.pooler_output), 1 - is_next)
    return {
        "step": step,
        "MLM, ours": float(sums.mlm) / len(batch.masked_labels),
        "MLM, the formula": float(mlm),
        "NSP, ours": float(sums.nsp) / len(is_next),
        "NSP, the formula": float(nsp),
    }


def running_means(metrics: list[dict], key: str) -> np.ndarray:
    """What the reference prints after each step: the mean over all steps so far."""
    losses = np.array([record[key] for record in metrics if record["split"] == "train"])
    return np.cumsum(losses) / np.arange(1, len(losses) + 1)


def table(metrics: list[dict], steps: list[int]) -> str:
    held_out = {record["step"]: record for record in metrics if record["split"] == "held_out"}
    train = {record["step"]: record for record in metrics if record["split"] == "train"}
    mlm, nsp = (running_means(metrics, key) for key in ("mlm_loss", "nsp_loss"))
    lines = [
        "| step | MLM, this step | MLM, as the reference prints | MLM, held-out | "
        "NSP, this step | NSP, as the reference prints | NSP, held-out | pairs right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step in sorted(set(steps) & set(train)):
        here = held_out.get(step)
        judged = (
            [f"{here['mlm_loss']:.3f}", f"{here['nsp_loss']:.3f}", f"{here['nsp_accuracy']:.1%}"]
            if here
            else ["", "", ""]
        )
        lines.append(
            f"| {step} | {train[step]['mlm_loss']:.3f} | {mlm[step - 1]:.3f} | {judged[0]} | "
            f"{train[step]['nsp_loss']:.3f} | {nsp[step - 1]:.3f} | {judged[1]} | {judged[2]} |"
        )
    last = list(held_out.values())[-1]
    lines.append(
        "\nYardsticks: "
        + ", ".join(f"{k} {last[k]:.3f}" for k in last if "nats" in k or "overlap" in k)
    )
    return "\n".join(lines)


def draw(metrics: list[dict], path: Path) -> None:
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    held_out = [record for record in metrics if record["split"] == "held_out"]
    train = [record for record in metrics if record["split"] == "train"]
    panels = {
        "mlm_loss": (
            "masked language modeling",
            {"word frequencies": "unigram_nats", "no context": "no_context_nats"},
        ),
        "nsp_loss": (
            "next sentence prediction",
            {"label frequencies": "nsp_chance_nats", "shared words": "nsp_overlap_nats"},
        ),
    }
    for axes, (key, (title, levels)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        steps = [record["step"] for record in train]
        axes.plot(
            steps, [record[key] for record in train], color="#9db4c8", label="train, each step"
        )
        axes.plot(
            steps,
            running_means(metrics, key),
            color="#e08e0b",
            label="train, as the reference prints",
        )
        axes.plot(
            [r["step"] for r in held_out],
            [r[key] for r in held_out],
            color="#0b3c5d",
            label="held-out",
        )
        for (label, level), style in zip(levels.items(), (":", "--"), strict=True):
            value = held_out[-1][level]
            axes.axhline(
                value, color="#c0392b", linestyle=style, linewidth=1, label=f"{label} {value:.3f}"
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("nats")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
