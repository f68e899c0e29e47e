"""The small text, the small network and the short run that most tests train."""

from collections.abc import Sequence

from hypothesis import settings

SUBJECTS = ["the river", "a farmer", "the old bridge", "my sister", "the market", "a grey crane"]
VERBS = ["crosses", "remembers", "follows", "watches", "feeds"]
OBJECTS = ["the valley", "two horses", "a long road", "the winter rain", "its own shadow"]


def make_documents(count: int, sentences: int = 6) -> list[str]:
    """Documents of plain English, each sentence different, no file made by hand."""
    texts = []
    for d in range(count):
        parts = []
        for s in range(sentences):
            n = d * 31 + s * 7
            words = f"{SUBJECTS[n % 6]} {VERBS[(n // 6) % 5]} {OBJECTS[(n // 3) % 5]}"
            parts.append(f"{words.capitalize()} in year {n % 97}.")
        texts.append(" ".join(parts))
    return texts


# A network and a run of a fraction of a second, and the part that a prepared store does not take.
SMALL_TEXT = ["tokenizer.vocab_size=200", "text.held_out_fraction=0.2"]
SMALL_OVER_A_STORE = [
    "pairs.max_length=32",
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "model.hidden_dropout_prob=0.1",
    "model.attention_probs_dropout_prob=0.1",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.log_every_steps=2",
    "train.validate_every_steps=4",
    "train.checkpoint_every_steps=4",
    "schedule.warmup_steps=2",
]
SMALL = [*SMALL_TEXT, *SMALL_OVER_A_STORE]
CLOCKS = ("seconds", "pairs_per_second", "tokens_per_second", "mfu", "waiting_fraction")
"""The keys of a run's metrics that depend on the machine."""

# Hypothesis takes a hundred examples of a property in `make test-all`, and so does all else that
# comes in two sizes; `make test` (pytest --fast) takes a fifth of each.
FULL_EXAMPLES, FAST_EXAMPLES = 100, 20


def examples(count: int) -> settings:
    """Settings of a property that takes `count` examples in ``make test-all``."""
    return settings(max_examples=count * settings.default.max_examples // FULL_EXAMPLES)


def some(values: Sequence) -> Sequence:
    """All of them in ``make test-all``, evenly chosen ones in ``make test``."""
    return values[:: FULL_EXAMPLES // settings.default.max_examples]
