"""Shares of short and "next" pairs: ours, and those of the sequential routine that BERT's data had.

    python benchmarks/pair_shares.py [--corpus sample:sotu] [--max-length 128]

The sequential routine is re-derived from its description (Devlin et al. 2019, section 3.1 and A.2,
and the published data maker's behavior): a document is read in runs of whole sentences up to a
target length; the target is shortened for a whole document one time in ten; a random second segment
gives the unused sentences back, which are then read again.
"""

import argparse
import json
import random
import statistics

import numpy as np

from bertmill.config import load_recipe
from bertmill.data.batch import Batches
from bertmill.data.prepare import open_or_prepare


def sequential_pairs(documents, max_length, seed=0):
    """Yield (length of A, length of B, is_next) of one pass; a document is sentence lengths."""
    rng = random.Random(seed)
    room = max_length - 3
    for number, document in enumerate(documents):
        target = rng.randint(2, room) if rng.random() < 0.1 else room
        at, chunk = 0, []
        while at < len(document):
            chunk.append(document[at])
            if at == len(document) - 1 or sum(chunk) >= target:
                split = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                a = sum(chunk[:split])
                if len(chunk) == 1 or rng.random() < 0.5:
                    other = rng.randrange(len(documents) - 1)
                    other += other >= number
                    b, i = 0, rng.randrange(len(documents[other]))
                    while (i < len(documents[other]) and b < target - a) or b == 0:
                        b += documents[other][i]
                        i += 1
                    at -= len(chunk) - split
                    is_next = False
                else:
                    b, is_next = sum(chunk[split:]), True
                yield *truncate(a, b, room), is_next
                chunk = []
            at += 1


def truncate(a, b, room):
    while a + b > room:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


def summarize(pairs, room):
    a, b, is_next = zip(*pairs, strict=True)
    total = [x + y for x, y in zip(a, b, strict=True)]
    return {
        "pairs": len(a),
        "next": statistics.mean(is_next),
        "shorter_than_90_percent": statistics.mean(t < 0.9 * room for t in total),
        "mean_a": statistics.mean(a),
        "mean_b": statistics.mean(b),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", default="sample:sotu")
    parser.add_argument("--max-length", type=int, default=128)
    arguments = parser.parse_args()
    recipe = load_recipe("quick", [f"pairs.max_length={arguments.max_length}"])
    store = open_or_prepare([arguments.corpus], recipe.text, recipe.tokenizer)
    room = arguments.max_length - 3

    batches = Batches(store.train, store.tokenizer, recipe.pairs, recipe.masking, 1, 1, "corpus")
    pairs, _ = batches.pairs_at(np.arange(batches.num_examples))
    ours = zip(
        (pairs.a_stops - pairs.a_starts).tolist(),
        (pairs.b_stops - pairs.b_starts).tolist(),
        pairs.is_next.tolist(),
        strict=True,
    )
    documents = []
    for number in range(store.train.num_blocks):
        block = store.train.block(number)
        lengths = np.diff(block.sentence_starts)
        documents += [part.tolist() for part in np.split(lengths, block.document_starts[1:-1])]
    result = {
        "corpus": arguments.corpus,
        "max_length": arguments.max_length,
        "ours": summarize(ours, room),
        "sequential": summarize(sequential_pairs(documents, arguments.max_length), room),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
