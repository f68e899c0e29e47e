"""The floor: every matrix product of a step at its true packed shape, and nothing else.

No program that makes the same step of the same products can be faster. Each is made in the fastest
of several tilings, into buffers that are used again, or whole by the other library of products that
torch has (oneDNN; by itself it takes MKL) where that is faster.
"""

from itertools import groupby

import torch
from measure import timed

from bertmill.model.kernels import linear
from bertmill.train.device import to_device
from bertmill.train.malloc import freed_memory_kept
from peers.ours import CPU
from peers.workload import Workload

PEAK_WIDTH, PEAK_PRODUCTS = 1024, 50
ROWS_AT_ONCE = (256, 512, 1024, 4096, None)
SEQUENCES_AT_ONCE = (8, 32, None)
TRIALS = 3


class Peak:
    """What the machine can do: wide products, far from any memory's limits."""

    def __init__(self, workload: Workload):
        pass

    def losses(self):
        return None

    def start(self):
        self.left, self.right, self.out = torch.rand(3, PEAK_WIDTH, PEAK_WIDTH)

    def step(self, number):
        for _ in range(PEAK_PRODUCTS):
            torch.mm(self.left, self.right, out=self.out)


PEAK_STEP_FLOPS = 2 * PEAK_WIDTH**3 * PEAK_PRODUCTS


class Floor:
    def __init__(self, workload: Workload):
        self.workload = workload
        self.choices = {}

    def losses(self):
        return None

    def start(self):
        """Choose the ways, on the first batch that has such products."""
        freed_memory_kept().__enter__()  # for the rest of the process
        self.products = [self._products(batch) for batch in self.workload.batches]

    @torch.inference_mode()
    def step(self, number):
        for count, product in self.products[number]:
            for _ in range(count):
                product()

    @torch.inference_mode()
    def _products(self, batch):
        """Every product of a batch's step, forward and backward, and how often it is made."""
        section, vocab_size = self.workload.recipe.model, self.workload.vocab_size
        width, inner, depth = (
            section.hidden_size,
            section.intermediate_size,
            section.num_hidden_layers,
        )
        num_tokens, num_predictions = len(batch.token_ids), len(batch.masked_at)
        num_pairs = len(batch.next_sentence_labels)
        num_selected = to_device(batch, CPU).selection.lengths
        num_asking = sum(num_selected)
        maps = [
            (depth - 1, num_tokens, width, 3 * width),
            (depth - 1, num_tokens, width, width),
            (depth - 1, num_tokens, width, inner),
            (depth - 1, num_tokens, inner, width),
            # In the last block all tokens are keys and values, but few have a reader.
            (1, num_tokens, width, 2 * width),
            (1, num_asking, width, width),
            (1, num_asking, width, width),
            (1, num_asking, width, inner),
            (1, num_asking, inner, width),
            (1, num_predictions, width, width),
            (1, num_predictions, width, vocab_size),
            (1, num_pairs, width, width),
            (1, num_pairs, width, 2),
        ]
        heads = section.num_attention_heads
        return [
            *((count, self._linear(i, *shape)) for i, (count, *shape) in enumerate(maps)),
            *(
                (count, self._attention(len(list(run)) * heads, *sizes, width // heads))
                for count, asking in ((depth - 1, batch.lengths), (1, num_selected))
                for sizes, run in groupby(zip(asking, batch.lengths, strict=True))
            ),
        ]

    def _linear(self, number, num_rows, num_in, num_out):
        """A map of rows, and both products of its backward pass."""
        x, y = torch.randn(num_rows, num_in), torch.randn(num_rows, num_out)
        weight, d_weight = torch.randn(num_out, num_in), torch.zeros(num_out, num_in)
        products = {
            "forward": (
                lambda rows: torch.mm(x[rows], weight.T, out=y[rows]),
                lambda rows: linear.multiply(x[rows], weight),
            ),
            "to the input": (
                lambda rows: torch.mm(y[rows], weight, out=x[rows]),
                lambda rows: linear.multiply(y[rows], weight.T),
            ),
            "to the weight": (
                lambda rows: torch.addmm(d_weight, y[rows].T, x[rows], out=d_weight),
            ),
        }
        ways = [
            self._fastest((name, number), either, num_rows, ROWS_AT_ONCE)
            for name, either in products.items()
        ]
        return lambda: [way() for way in ways]

    def _attention(self, num_rows, num_asking, length, size):
        """Scores and mixing in all heads of sequences of one length, and their backward pass."""
        queries, mixed = torch.randn(2, num_rows, num_asking, size)
        keys, out = torch.randn(2, num_rows, length, size)
        scores = torch.randn(num_rows, num_asking, length)
        products = {
            "score": lambda rows: torch.bmm(queries[rows], keys.mT[rows], out=scores[rows]),
            "mix": lambda rows: torch.bmm(scores[rows], keys[rows], out=mixed[rows]),
            "mix turned": lambda rows: torch.bmm(scores.mT[rows], queries[rows], out=out[rows]),
        }
        ways = [
            self._fastest((name, num_asking, length), [product], num_rows, SEQUENCES_AT_ONCE)
            for name, product in products.items()
        ]
        # Forward a score and a mix; backward as many, and to keys and values the turned one.
        return lambda: [way() for way in ways for _ in range(2)]

    def _fastest(self, kind, products, num_rows, sizes):
        """Make the product in the tiles, and by the library, that are fastest for its kind."""

        def way_of(number, size):
            size = size or num_rows
            tiles = [slice(start, start + size) for start in range(0, num_rows, size)]
            return lambda: [products[number](tile) for tile in tiles]

        if kind not in self.choices:
            choices = [
                (number, size)
                for number in range(len(products))
                for size in sizes
                if size is None or size < num_rows
            ]
            self.choices[kind] = min(choices, key=lambda choice: best_seconds(way_of(*choice)))
        return way_of(*self.choices[kind])


def best_seconds(compute):
    return min(timed(compute) for _ in range(TRIALS))
