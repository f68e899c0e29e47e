"""What is counted: sums over counts, in which skipped steps have no part."""

import json
import math

import pytest
import torch

from bertmill.config import load_recipe
from bertmill.model.packed import PackedTokens, Selection
from bertmill.model.pretraining import LossSums, PretrainingInput, count_step_flops
from bertmill.train.metrics import Clock, LossMeter, SpeedMeter
from bertmill.train.world import World

CPU = torch.device("cpu")


def add(meter, mlm, nsp, num_predictions, num_pairs, skipped=False):
    sums = LossSums(torch.tensor(float(mlm)), torch.tensor(float(nsp)))
    meter.add(sums, torch.tensor([num_predictions, num_pairs]), torch.tensor(skipped))


def test_means_are_sums_over_counts_not_means_of_means():
    meter = LossMeter(CPU)
    add(meter, 30.0, 4.0, 3, 4)
    add(meter, 7.0, 1.0, 7, 1)
    assert meter.means() == {"mlm_loss": 37 / 10, "nsp_loss": 1.0, "skipped_steps": 0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1000.0])
def test_a_skipped_step_counts_for_nothing_but_itself(value):
    meter, other = LossMeter(CPU), LossMeter(CPU)
    for m in (meter, other):
        add(m, 30.0, 4.0, 3, 4)
    add(meter, value, value, 100, 50, skipped=True)
    for m in (meter, other):
        add(m, 7.0, 1.0, 7, 1)
    assert meter.means() == other.means() | {"skipped_steps": 1}


def test_without_an_answer_there_is_no_mean():
    meter = LossMeter(CPU)
    assert meter.means() == {"mlm_loss": None, "nsp_loss": None, "skipped_steps": 0}
    add(meter, 6.0, 0.0, 3, 0)  # no pairs
    assert meter.means() == {"mlm_loss": 2.0, "nsp_loss": None, "skipped_steps": 0}
    meter.reset()
    add(meter, math.nan, math.nan, 3, 2, skipped=True)
    assert meter.means() == {"mlm_loss": None, "nsp_loss": None, "skipped_steps": 1}


def test_an_interval_begins_at_a_reset():
    meter = LossMeter(CPU)
    add(meter, 30.0, 4.0, 3, 4)
    add(meter, 0.0, 0.0, 3, 4, skipped=True)
    meter.reset()
    add(meter, 8.0, 1.0, 2, 2)
    assert meter.means() == {"mlm_loss": 4.0, "nsp_loss": 0.5, "skipped_steps": 0}


def test_skipped_in_a_row_goes_on_across_a_reset():
    meter = LossMeter(CPU)
    seen = []
    for skipped in (True, True, False, True, True, None, True, False, None, True):
        if skipped is None:
            meter.reset()
        else:
            add(meter, 1.0, 1.0, 1, 1, skipped)
        seen.append(meter.skipped_in_a_row)
    assert seen == [1, 2, 0, 1, 2, 2, 3, 0, 0, 1]


def test_sums_are_exact_where_float32_is_not():
    meter = LossMeter(CPU)
    for _ in range(3):
        add(meter, 2.0**25, 0.0, 1, 1)
        add(meter, 1.0, 0.0, 1, 1)
    assert meter.means()["mlm_loss"] == (3 * 2**25 + 3) / 6


def test_what_went_into_the_loss_can_still_be_differentiated():
    meter, weight = LossMeter(CPU), torch.tensor(3.0, requires_grad=True)
    sums = LossSums(weight * 2, weight * 0)
    meter.add(sums, torch.tensor([1, 1]), torch.tensor(False))
    assert meter.means()["mlm_loss"] == 6.0
    sums.mlm.backward()
    assert weight.grad == 2.0


def test_a_saved_meter_goes_on_exactly_through_json():
    meter, again = LossMeter(CPU), LossMeter(CPU)
    for n in range(1, 20):
        add(meter, 10 / n, 1 / (3 * n), n, n, skipped=n % 7 == 0)
    add(meter, math.nan, math.nan, 5, 5, skipped=True)
    again.load_state(json.loads(json.dumps(meter.state(), allow_nan=False)))
    assert again.state() == meter.state()
    for m in (meter, again):
        add(m, 0.1, 0.2, 3, 3)
        add(m, 0.1, 0.2, 3, 3, skipped=True)
    assert again.state() == meter.state()
    assert again.means() == meter.means()
    assert again.skipped_in_a_row == meter.skipped_in_a_row == 1


def packed(lengths):
    """Sequences of these lengths, the second token of the first masked."""
    tokens = torch.zeros(sum(lengths), dtype=torch.long)
    return PretrainingInput(
        packed=PackedTokens.pack(tokens, tokens, tokens, lengths),
        selection=Selection(None, None, [2, *[1] * (len(lengths) - 1)]),
        masked_rows=tokens[:1],
        masked_labels=tokens[:1],
        next_sentence_labels=tokens[: len(lengths)],
    )


TINY = load_recipe("tiny").model


def test_rates_are_sums_over_all_the_time():
    flops = [
        count_step_flops(TINY, 50, [5, 3], [2, 1], 1, 2),
        count_step_flops(TINY, 50, [2], [2], 1, 1),
    ]
    meter = SpeedMeter(TINY, 50, peak_flops=sum(flops))
    none = dict.fromkeys(("pairs_per_second", "tokens_per_second", "mfu", "waiting_fraction"))
    assert meter.rates(World(CPU)) == none
    meter.add([packed([5, 3])], 0.5, 0.25)
    # What the device does at its peak in a second took it half of one, less the other step's part.
    assert meter.rates(World(CPU))["mfu"] == pytest.approx(2 * flops[0] / sum(flops))
    meter.add([packed([2])], 1.5, 0.0)
    assert meter.rates(World(CPU)) == {
        "pairs_per_second": 1.5,
        "tokens_per_second": 5.0,
        "mfu": 0.5,
        "waiting_fraction": 0.125,
    }
    meter.reset()
    assert meter.rates(World(CPU)) == none


def test_the_clock_goes_on_from_earlier_sessions(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bertmill.train.metrics.time.monotonic", lambda: now[0])
    clock = Clock(40.0)
    assert clock.seconds == 40.0
    now[0] = 107.5
    assert clock.seconds == 47.5
