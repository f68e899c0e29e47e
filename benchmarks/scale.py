"""The index arithmetic at 10^6 to 10^12 tokens and 1 to 1,000 ranks, really executed.

    python benchmarks/scale.py [--largest 1e12] [--folder FOLDER]

A store of 10^12 tokens is made of a manifest, the counts of its examples, and shards that are
holes: files of the right length without content. `Store` opens it as any other. The blocks that a
batch needs are made up when it asks for them: those of a small store that was really written, over
and over, each with its tokens in another order. Each size and number of ranks is measured by a
process of its own: it opens the store, makes the first batch of the last rank, the next one, and
that of the last whole step of the epoch. The batch has 65,536 sequences of 128 tokens, as in
NVIDIA's BERT-Large.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from batches import AnonymousMemory, write_store
from measure import markdown_table, timed, write_results

from bertmill.config import MaskingSection, PairsSection
from bertmill.data.batch import Batches
from bertmill.data.blocks import Block
from bertmill.data.pairs import PairMaker
from bertmill.data.store import BLOCK_TOKENS, Store, TokenStore

SIZES = [10**n for n in (6, 8, 10, 12)]
RANKS = [1, 10, 100, 1000]
BATCH_SIZE, PAIRS = 65_536, PairsSection(max_length=128)
SHARD_BLOCKS = 8


class MadeUpBlocks:
    """Blocks of a written store, over and over; at most two windows are held."""

    def __init__(self, written: TokenStore) -> None:
        self._written = written
        self.num_made = 0
        self.block = lru_cache(32)(self._make)

    def _make(self, number: int) -> Block:
        self.num_made += 1
        block = self._written.block(number % self._written.num_blocks)
        return Block(np.roll(block.tokens, number), block.sentence_starts, block.document_starts)


class CountedStore(TokenStore):
    """A store whose examples need not be counted: each block has those of its original."""

    written: PairMaker

    def count_by_block(self, what, count):
        counts = self.written.block_examples
        return super().count_by_block(what, lambda i: int(counts[i % len(counts)]))


def write_manifest(folder: Path, written: Path, num_tokens: int) -> None:
    """Write a store that has everything but content."""
    manifest = json.loads((written / "manifest.json").read_text("utf-8"))
    split = manifest["splits"]["train"]
    blocks = [block for shard in split["shards"] for block in shard["blocks"]]
    num_repeats = max(1, num_tokens // split["num_tokens"])
    listed = split["shards"][0] | {"blocks": blocks * num_repeats}
    shards = [
        {
            **listed,
            "file": f"train-{i:05d}.arrow",
            "blocks": listed["blocks"][first:][:SHARD_BLOCKS],
        }
        for i, first in enumerate(range(0, len(listed["blocks"]), SHARD_BLOCKS))
    ]
    totals = {name: split[name] * num_repeats for name in split if name != "shards"}
    manifest["splits"]["train"] = {**totals, "shards": shards}
    folder.mkdir()
    (folder / "tokenizer").symlink_to(written / "tokenizer")
    (folder / "token-counts.npy").symlink_to(written / "token-counts.npy")
    for shard in shards:
        with (folder / shard["file"]).open("wb") as file:
            file.truncate(shard["num_bytes"])
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def open_batches(store: Store, written: TokenStore) -> tuple[Batches, MadeUpBlocks]:
    """Open the batches of a store without content."""
    shards = store.manifest["splits"]["train"]["shards"]
    source = MadeUpBlocks(written)
    blocks = [block for shard in shards for block in shard["blocks"]]
    counted = CountedStore(source, blocks, store.folder, f"{store.identity} train")
    counted.written = PairMaker(written, PAIRS, "written")
    batches = Batches(
        counted, store.tokenizer, PAIRS, MaskingSection(), BATCH_SIZE, 1, "without content"
    )
    return batches, source


def measure(folder: Path, written_folder: Path, size: int) -> dict[str, object]:
    """Open the store and make batches as the last rank of `size`."""
    written = Store(written_folder).train
    written.block(0)
    found: dict[str, object] = {"ranks": size}

    def note(name, compute):
        results = []
        found[f"{name}_seconds"] = timed(lambda: results.append(compute()))
        return results[0]

    with AnonymousMemory() as memory:
        store = note("open_store", lambda: Store(folder))
        batches, source = note("open_batches", lambda: open_batches(store, written))
        first = note("first_batch", lambda: batches.micro_batches_at(0, 0, size - 1, size))
        found["first_batch_blocks"] = source.num_made
        note("next_batch", lambda: batches.micro_batches_at(1, 0, size - 1, size))
        last = max(0, batches.num_examples // BATCH_SIZE - 1)
        note("last_batch", lambda: batches.micro_batches_at(last, 0, size - 1, size))
    manifest = folder / "manifest.json"
    pairs, _ = batches.pairs_at(np.arange(last * BATCH_SIZE, last * BATCH_SIZE + 1000))
    return found | {
        "tokens": store.train.num_tokens,
        "blocks": store.train.num_blocks,
        "examples": batches.num_examples,
        "manifest_bytes": manifest.stat().st_size,
        "sequences": len(first[0].lengths),
        "highest_position": int(pairs.b_stops.max()),
        "anonymous_peak_bytes": memory.peak_bytes - memory.before_bytes,
        "spread": deal_out(batches, size),
    }


def deal_out(batches: Batches, size: int) -> float:
    """Check that the ranks' parts are the whole batch; return how much more the fullest has."""
    whole = batches.batch_at(0)
    parts = [batches.micro_batches_at(0, 0, rank, size)[0] for rank in range(size)]
    assert sorted(n for part in parts for n in part.lengths) == sorted(whole.lengths)
    tokens = [len(part.token_ids) for part in parts]
    return max(tokens) / (sum(tokens) / size) - 1


def count_examples_of_a_block(written: Path) -> float:
    """Seconds to count the examples of one block, which a store needs once for each."""
    store = Store(written).train
    store.count_by_block = lambda what, count: np.array([1])
    maker = PairMaker(store, PAIRS, "written")
    store.block(0)
    return timed(lambda: maker._make_index(0))


def show(rows: list[dict]) -> str:
    header = [
        *("tokens", "ranks", "open store, s", "open batches, s", "first batch, s", "next, s"),
        *("end of epoch, s", "blocks for it", "memory, MB", "fullest rank"),
    ]
    return markdown_table(
        header,
        (
            [
                f"10^{round(np.log10(row['tokens']))}",
                f"{row['ranks']:,}",
                *(
                    f"{row[f'{name}_seconds']:.2f}"
                    for name in ("open_store", "open_batches", "first_batch", "next_batch")
                ),
                f"{row['last_batch_seconds']:.2f}",
                f"{row['first_batch_blocks']}",
                f"{row['anonymous_peak_bytes'] / 1e6:,.0f}",
                f"+{row['spread']:.1%}",
            ]
            for row in rows
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=float, default=1e12)
    parser.add_argument("--folder", help="where the stores are written; a temporary folder")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, written, size = arguments.measure
        print(json.dumps(measure(Path(folder), Path(written), int(size))))
        return
    rows: list[dict] = []
    counting = 0.0
    for num_tokens in (size for size in SIZES if size <= arguments.largest):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            written, folder = Path(place) / "written", Path(place) / "store"
            write_store(written, min(num_tokens, SHARD_BLOCKS * BLOCK_TOKENS))
            write_manifest(folder, written, num_tokens)
            open_batches(Store(folder), Store(written).train)  # keeps the counts
            counting = count_examples_of_a_block(written)
            for size in RANKS:
                program = [sys.executable, __file__, "--measure", folder, written, str(size)]
                done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(done.stdout))
        print(f"{num_tokens:,} tokens measured", file=sys.stderr)
    print(show(rows))
    print(f"\ncounting the examples of a block, once for each: {counting:.2f} s")
    figures = {"rows": rows, "count_examples_of_a_block_seconds": counting}
    write_results("scale", figures, ["numpy", "pyarrow"], num_threads=1)


if __name__ == "__main__":
    main()
