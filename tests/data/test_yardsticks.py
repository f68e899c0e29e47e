import numpy as np
import pytest

from bertmill.config import MaskingSection, TokenizerSection
from bertmill.data.yardsticks import measure_no_context
from bertmill.text.vocabulary import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        ["a a a a b b b c c d"],
        TokenizerSection(kind="word", min_frequency=1, vocab_size=100),
    )


def slow_no_context(counts, shown, labels, masking, tokenizer):
    """Bayes' rule written out: joint probability of (true, shown) over all true tokens."""
    p = (counts + 1) / (counts + 1).sum()
    ordinary = [i for i in range(tokenizer.size) if not tokenizer.is_special[i]]
    kept = 1 - masking.mask_token_fraction - masking.random_token_fraction

    def joint(true, seen):
        total = p[true] * masking.mask_token_fraction * (seen == tokenizer.mask_id)
        if seen in ordinary:
            total += p[true] * masking.random_token_fraction / len(ordinary)
        return total + p[true] * kept * (seen == true)

    nats = 0.0
    for true, seen in zip(labels, shown, strict=True):
        if seen == tokenizer.mask_id:
            nats -= np.log(p[true])
        else:
            nats -= np.log(joint(true, seen) / sum(joint(t, seen) for t in range(tokenizer.size)))
    return nats / len(labels)


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.5, 0.5), (0.0, 0.3), (0.6, 0.0)])
def test_no_context_is_bayes_rule(tokenizer, shares):
    masking = MaskingSection(mask_token_fraction=shares[0], random_token_fraction=shares[1])
    counts = np.array([0, 3, 0, 0, 0, 40, 30, 20, 10])
    rng = np.random.default_rng(0)
    labels = rng.integers(5, 9, 200)
    kind = rng.random(200)
    shown = np.where(
        kind < shares[0],
        tokenizer.mask_id,
        np.where(kind < sum(shares), rng.integers(5, 9, 200), labels),
    )
    got = measure_no_context(counts, shown, labels, masking, tokenizer)
    assert got[1] == pytest.approx(slow_no_context(counts, shown, labels, masking, tokenizer))
    p = (counts + 1) / (counts + 1).sum()
    assert got[0] == pytest.approx(-np.log(p[labels]).mean())


def test_an_unknown_token_that_is_shown_was_kept(tokenizer):
    counts = np.arange(9)
    unknown = np.array([tokenizer.unk_id])
    got = measure_no_context(counts, unknown, unknown, MaskingSection(), tokenizer)
    assert got[1] == pytest.approx(0.0)


def test_published_yardsticks_of_wikitext_2(shared_data):
    """The frozen pairs were drawn by another program; its yardsticks are 6.701 and 6.093."""
    import gzip
    import json

    from bertmill.config import load_recipe
    from bertmill.text.corpus import read_documents
    from bertmill.text.files import find_files
    from bertmill.text.sentences import split_sentences

    recipe = load_recipe("d2l")
    train = find_files([str(shared_data / "wikitext-2" / "wiki.train.tokens.gz")])
    texts = [
        "\n".join(split_sentences(d.text, recipe.text)) for d in read_documents(train, recipe.text)
    ]
    tokenizer = train_tokenizer(texts, recipe.tokenizer)
    ids, _ = tokenizer.encode_batch(texts)
    counts = np.bincount(ids, minlength=tokenizer.size)
    shown, labels = [], []
    with gzip.open(shared_data / "judge" / "wikitext-2-valid.jsonl.gz", "rt") as stream:
        for line in stream:
            pair = json.loads(line)
            shown += [pair["tokens"][i] for i in pair["masked_at"]]
            labels += pair["labels"]
    vocab = tokenizer.backend.get_vocab()
    unknown = tokenizer.unk_id
    got = measure_no_context(
        counts,
        np.array([vocab.get(token, unknown) for token in shown]),
        np.array([vocab.get(token, unknown) for token in labels]),
        recipe.masking,
        tokenizer,
    )
    assert got[0] == pytest.approx(6.701, abs=0.002)
    assert got[1] == pytest.approx(6.093, abs=0.02)
