"""What a batch costs, from a store of 10^5 tokens to one of 10^9: speed, memory and opening.

    python benchmarks/batches.py [--largest 1e8] [--folder FOLDER]

The stores are synthetic (lengths and ids drawn, 24 tokens a sentence, 20 sentences a document, a
vocabulary of 30,000), are written with the package's own writer and deleted afterwards; the largest
takes 2.3 bytes a token on disk. Each is measured by a process of its own, on one core: opening the
store and its batches for the first time, when the hashes of blocks and the counts of examples are
made, and once more, when they are there; then batches at consecutive steps, as a run takes them,
from random places of the epoch on.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
from measure import Spread, markdown_table, memory_bytes, timed, write_results

from bertmill.config import MaskingSection, PairsSection
from bertmill.data.batch import Batches
from bertmill.data.store import EncodedDocuments, Store, StoreWriter
from bertmill.text.tokenizer import load_tokenizer

SIZES = [10**n for n in range(5, 10)]
VOCAB_SIZE, SENTENCE_TOKENS, DOCUMENT_SENTENCES = 30_000, 24, 20
CHUNK_TOKENS = 2**20

# Recipe, pairs.kind, pairs.max_length, train.batch_size, masking.whole_word.
SHAPES = {
    "d2l": ("sentences", 64, 512, False),
    "quick": ("segments", 64, 32, False),
    "base": ("segments", 128, 256, False),
    "base, whole words": ("segments", 128, 256, True),
}
# Random places of the epoch, and sequences made from each on.
NUM_PLACES, SEQUENCES_A_PLACE = 8, 4096
COLOURS = dict(zip(SHAPES, ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3"), strict=True))
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "batches.png"


# --- synthetic stores ----------------------------------------------------------------------------


def write_store(folder: Path, num_tokens: int) -> None:
    vocabulary = folder.with_suffix(".txt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # One piece in five goes on with the word before it.
    words += [f"{'##' if i % 5 == 0 else ''}w{i}" for i in range(len(words), VOCAB_SIZE)]
    vocabulary.write_text("\n".join(words), "utf-8")
    folder.mkdir()
    writer = StoreWriter(folder, load_tokenizer(vocabulary))
    rng = np.random.default_rng(num_tokens)
    shares = 1.0 / np.arange(3, VOCAB_SIZE - 2)
    common_ids = 5 + np.searchsorted(
        np.cumsum(shares) / shares.sum(), (np.arange(2**16) + 0.5) / 2**16
    )
    for start in range(0, num_tokens, CHUNK_TOKENS):
        size = min(CHUNK_TOKENS, num_tokens - start)
        sentences = cut(size, 1 + rng.gamma(3.0, (SENTENCE_TOKENS - 1) / 3.0, size).astype(int))
        lengths = rng.geometric(1.0 / DOCUMENT_SENTENCES, len(sentences))
        ids = common_ids[rng.integers(0, 2**16, size, np.uint16)]
        writer.add("train", EncodedDocuments(ids, sentences, cut(len(sentences), lengths)))
    writer.close({"text": {}, "tokenizer": {}})


def cut(total: int, lengths: np.ndarray) -> np.ndarray:
    """As many of the lengths as there is room for; the last one is what is left."""
    stops = np.cumsum(lengths)
    stops = np.append(stops[stops < total], total)
    return np.diff(stops, prepend=0)


# --- one store and shape, in a process of its own ------------------------------------------------


class AnonymousMemory:
    """Most memory of this process, mapped files apart, seen 50 times a second (Linux)."""

    def __init__(self) -> None:
        self.peak_bytes = self.before_bytes = self.now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @staticmethod
    def now() -> int:
        return memory_bytes("RssAnon")

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, self.now())

    def __enter__(self) -> "AnonymousMemory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self.now())


def measure(folder: str, shape: str) -> dict[str, object]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with AnonymousMemory() as memory:
        _, first_seconds = open_batches(folder, shape)
        batches, seconds = open_batches(folder, shape)
        rates, firsts, next_step = run_through(batches)
    store = Store(folder).train
    return {
        "shape": shape,
        "tokens": store.num_tokens,
        "blocks": store.num_blocks,
        "examples": batches.num_examples,
        "first_open_seconds": first_seconds,
        "open_seconds": seconds,
        "tokens_per_second": Spread.of(rates),
        "first_batch_seconds": Spread.of(firsts),
        "anonymous_peak_bytes": memory.peak_bytes - memory.before_bytes,
        "allocated_bytes": allocated_bytes(batches, next_step),
    }


def open_batches(folder: str, shape: str) -> tuple[Batches, float]:
    """Batches of a store, and the seconds it took to open both."""
    kind, max_length, batch_size, whole_word = SHAPES[shape]
    started = time.perf_counter()
    store = Store(folder)
    batches = Batches(
        store.train,
        store.tokenizer,
        PairsSection(kind=kind, max_length=max_length),
        MaskingSection(whole_word=whole_word),
        batch_size,
        1,
        "synthetic",
    )
    return batches, time.perf_counter() - started


def run_through(batches: Batches) -> tuple[list[float], list[float], int]:
    """Tokens a second from some random places on, seconds of the first batch, and the next step."""
    num_steps = SEQUENCES_A_PLACE // batches.batch_size
    places = random.Random(0)
    rates, firsts = [], []
    for _ in range(NUM_PLACES):
        first = places.randrange(max(1, batches.num_examples // batches.batch_size))
        firsts.append(timed(lambda step=first: batches.batch_at(step)))
        started = time.perf_counter()
        steps = range(first + 1, first + 1 + num_steps)
        num_tokens = sum(len(batches.batch_at(step).token_ids) for step in steps)
        rates.append(num_tokens / (time.perf_counter() - started))
    return rates, firsts, steps.stop


def allocated_bytes(batches: Batches, first: int) -> int:
    """Most that making a batch allocates, the batch included; one of them draws many pairs."""
    tracemalloc.start()
    peaks = []
    for step in range(first, first + SEQUENCES_A_PLACE // batches.batch_size):
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        batches.batch_at(step)
        peaks.append(tracemalloc.get_traced_memory()[1] - held)
    tracemalloc.stop()
    return max(peaks)


# --- all of them ---------------------------------------------------------------------------------


def show(rows: list[dict]) -> str:
    header = [
        "tokens",
        "shape",
        "M tokens/s",
        "MB a batch",
        "MB in all",
        "open first, s",
        "open, s",
        "new window, s",
    ]
    return markdown_table(
        header,
        (
            [
                f"10^{round(np.log10(row['tokens']))}",
                row["shape"],
                f"{row['tokens_per_second']['median'] / 1e6:.1f} "
                f"({row['tokens_per_second']['min'] / 1e6:.1f} to "
                f"{row['tokens_per_second']['max'] / 1e6:.1f})",
                f"{row['allocated_bytes'] / 1e6:.1f}",
                f"{row['anonymous_peak_bytes'] / 1e6:.0f}",
                f"{row['first_open_seconds']:.2f}",
                f"{row['open_seconds']:.3f}",
                f"{row['first_batch_seconds']['max']:.3f}",
            ]
            for row in rows
        ),
    )


def draw(rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "Million tokens a second on a core": lambda r: r["tokens_per_second"]["median"] / 1e6,
        "Memory to make a batch, MB": lambda r: r["allocated_bytes"] / 1e6,
        "Memory in all, mapped files apart, MB": lambda r: r["anonymous_peak_bytes"] / 1e6,
        "Seconds to open": lambda r: r["open_seconds"],
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2), sharex=True, layout="constrained")
    for axis, (title, value) in zip(axes.flat, panels.items(), strict=True):
        for shape, color in COLOURS.items():
            own = [row for row in rows if row["shape"] == shape]
            axis.plot(
                [row["tokens"] for row in own],
                list(map(value, own)),
                "o-",
                color=color,
                label=shape,
            )
        axis.set_title(title, fontsize=11, loc="left")
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].axhline(2, color="grey", linestyle="--", linewidth=1)
    axes[0, 0].annotate("goal", (1e5, 2), (0, 4), textcoords="offset points", color="grey")
    for axis in axes[1]:
        axis.set_xlabel("tokens in the store")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    figure.savefig(IMAGE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--largest", type=float, default=1e8)
    parser.add_argument("--folder", help="where the stores are written; a temporary folder")
    parser.add_argument("--measure", nargs=2, metavar=("STORE", "SHAPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure), default=vars))
        return
    rows: list[dict] = []
    for size in (size for size in SIZES if size <= arguments.largest):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            store = Path(folder) / "store"
            write_store(store, size)
            for shape in SHAPES:
                for kept in store.glob("examples-*"):
                    kept.unlink()
                program = [sys.executable, __file__, "--measure", str(store), shape]
                done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(done.stdout))
        print(f"{size:,} tokens measured", file=sys.stderr)
    print(show(rows))
    write_results("batches", {"rows": rows}, ["numpy", "pyarrow"], num_threads=1)
    draw(rows)


if __name__ == "__main__":
    main()
