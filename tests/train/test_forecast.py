"""What a run would take, beside what published runs took."""

import re

import pytest

import bertmill
from bertmill.config import load_recipe
from bertmill.errors import BertmillError, InputError
from bertmill.show.tables import forecast_lines
from bertmill.train.forecast import DEVICES, Device, Span, forecast, parse_devices

# 180 TFLOP/s for a Cloud TPU of four chips (cloud.google.com/tpu/docs/v2); in 2018 all was padded.
TPU_V2 = Device("TPUv2", 45e12, 16e9)

# What was run, on what, in how many hours, and the factor by which the forecast's range may be off.
PUBLISHED = {
    # Devlin et al. 2019, A.2: 16 and 64 TPU chips, four days each.
    "BERT-Base 2018": ([("base", [])], 16, TPU_V2, 96, 3.0),
    "BERT-Large 2018": ([("large", [])], 64, TPU_V2, 96, 3.0),
    # NVIDIA/DeepLearningExamples, PaddlePaddle/LanguageModeling/BERT: 32 DGX A100, AMP, LAMB.
    "NVIDIA's BERT-Large": (
        [
            ("large", ["pairs.max_length=128", "train.batch_size=65536", "train.steps=7038"]),
            ("large", ["pairs.max_length=512", "train.batch_size=32768", "train.steps=1563"]),
        ],
        256,
        DEVICES["A100"],
        1.1,
        1.25,
    ),
    # Portes et al. 2023: the Hugging Face BERT-Base beside MosaicBERT, 286,720,000 sequences in
    # 11.5 hours (mosaicml/examples, benchmarks/bert; model card of mosaic-bert-base).
    "MosaicBERT's BERT-Base": (
        [
            (
                "base",
                ["pairs.max_length=128", "pairs.kind=none", "train.batch_size=4096"]
                + ["train.steps=70000"],
            )
        ],
        8,
        DEVICES["A100"],
        11.5,
        1.25,
    ),
    # Geiping and Goldstein 2022: a day on an A6000 reads a little less than the 85 million
    # sequences that the authors' configuration prepares. Gated units count as 3/4 of plain ones.
    "cramming's day": (
        [
            (
                "base",
                ["pairs.max_length=128", "pairs.kind=none", "train.batch_size=8192"]
                + ["train.steps=10376", "model.num_hidden_layers=16"]
                + ["model.intermediate_size=2304", "masking.mask_fraction=0.25"]
                + ["tokenizer.vocab_size=32768"],
            )
        ],
        1,
        DEVICES["A6000"],
        24,
        1.25,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_took_what_is_forecast(name):
    runs, count, device, hours, factor = PUBLISHED[name]
    found = [forecast(load_recipe(*recipe), count, device).seconds for recipe in runs]
    low, high = (sum(getattr(span, end) for span in found) / 3600 for end in ("low", "high"))
    assert low / factor <= hours <= high * factor


def test_phases_and_devices_add_up():
    one = forecast(load_recipe("base"), 1, DEVICES["H100"], 3.3e9)
    assert [(phase.steps, phase.max_length) for phase in one.phases] == [
        (900_000, 128),
        (100_000, 512),
    ]
    assert one.tokens == 256 * (900_000 * 128 + 100_000 * 512)
    assert one.epochs == one.tokens / 3.3e9
    assert one.flops == sum(phase.steps * phase.step_flops for phase in one.phases)
    assert one.seconds.low == pytest.approx(one.flops / (0.45 * 989e12))
    assert one.seconds.high == pytest.approx(one.flops / (0.20 * 989e12))
    eight = forecast(load_recipe("base"), 8, DEVICES["H100"], price=2.0)
    assert eight.seconds.high == pytest.approx(one.seconds.high / 8) and eight.epochs is None
    assert eight.dollars == eight.seconds.times(8 / 3600 * 2.0)
    assert one.notes == () and "may take only 4.7 ms" in eight.notes[0]
    assert forecast(load_recipe("base"), 1, DEVICES["L4"]).dollars is None


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [("8xH100", 8, "H100"), ("1xa100", 1, "A100"), (" 2 x CPU", 2, "CPU"), ("4*L40s", 4, "L40S")],
)
def test_device_plans(text, count, name):
    assert parse_devices(text) == (count, DEVICES[name])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("lots", ["`devices` lots", "is not a device plan", "such as 8xH100"]),
        ("H100", ["is not a device plan", "did you mean '1xH100'"]),
        ("0xH100", ["is not a device plan"]),
        ("8xH1000", ["names a device that is not known", "did you mean 'H100'", "known are A100"]),
        ("", ["is not a device plan"]),
    ],
)
def test_what_is_no_device_plan_is_refused(text, parts):
    with pytest.raises(InputError) as error:
        bertmill.plan("base", text)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "given", "part"),
    [
        ("base", {"devices": "257xH100"}, "`devices` 257xH100: are more than the 256 sequences"),
        ("quick", {"settings": ["train.budget_seconds=9"]}, "recipe quick: has a time budget"),
        ("continue", {}, "recipe continue: has no network of its own"),
        ("base", {"tokens": -1.0}, "`tokens`: is -1; give a number above 0"),
        ("base", {"price": float("nan")}, "`price`: is nan; give a number above 0"),
    ],
)
def test_what_cannot_be_forecast_is_refused(recipe, given, part):
    with pytest.raises(InputError) as error:
        bertmill.plan(recipe, **{"devices": "8xH100", **given})
    assert part in str(error.value)
    bertmill.plan("base", "300xCPU")  # cores work together


def test_a_step_is_divided_as_a_run_would():
    whole = bertmill.plan("base", "8xH100")
    assert (whole.micro_batch_tokens, whole.recompute) == (0, False)
    assert whole.memory.total < 0.9 * 80e9
    small = bertmill.plan("base", "1xL4")
    assert 0 < small.micro_batch_tokens < 256 * 512 and small.micro_batch_tokens % 512 == 0
    assert 0.7 * 24e9 < small.memory.total <= 0.9 * 24e9
    assert small.memory.weights == pytest.approx(4 * 110.1e6, rel=1e-3)
    # Of eight ranks each copies the weights that it computes with; in parts they take an eighth.
    assert small.memory.weights < whole.memory.weights < 2 * small.memory.weights
    parts = bertmill.plan("base", "8xH100", settings=["train.shard=full"])
    assert parts.memory.moments == pytest.approx(whole.memory.moments / 8, rel=1e-6)
    twice, once = (
        bertmill.plan("base", "1xH100", settings=[f"train.recompute={value}"])
        for value in ("true", "false")
    )
    assert twice.seconds.low == pytest.approx(once.seconds.low * 4 / 3)
    assert twice.memory.activations < once.memory.activations
    assert bertmill.plan("large", "4xCPU", settings=["train.memory=14GB"]).memory.total <= 14e9
    with pytest.raises(BertmillError, match=r"a step needs [\d.]+ GB at least, 2.0 GB is allowed"):
        bertmill.plan("base", "8xH100", settings=["train.memory=2GB"])


def test_the_forecast_in_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = list(forecast_lines(bertmill.plan("base", "8xH100", tokens=3.3e9)))
    assert max(map(len, lines)) <= 80
    text = " ".join("\n".join(lines).split())
    assert text.startswith("recipe base on 8 x H100")
    assert "900,000 of 256 x 128 tokens; 100,000 of 256 x 512 tokens" in text
    assert "42,598,400,000 tokens, 12.9 times all of the text" in text
    assert re.search(r"memory [\d.]+ GB per device: weights 0.59, gradients 0.88, moments", text)
    assert "a step each device's share is computed whole time" in text
    assert "time 1.7 to 3.9 hours, at 20% to 45% of 989 TFLOP/s per device" in text
    assert "cost 28 to 157 dollars, at 1.99 to 5.00 per device and hour" in text
    assert "expect less speed" in text
    cores = " ".join(" ".join(forecast_lines(bertmill.plan("large", "2xCPU"))).split())
    assert " GB in all: " in cores and "tokens at once, blocks computed twice" in cores
    cheap = " ".join(forecast_lines(bertmill.plan("tiny", "1xL4", price=0.5)))
    assert "at 0.50 per device" in cheap
    assert "cost  " in " ".join(forecast_lines(bertmill.plan("tiny", "1xL4")))


def test_spans_scale():
    assert Span(1.0, 2.0).times(3.0) == Span(3.0, 6.0)
