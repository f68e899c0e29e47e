"""The vocabulary: words counted, pieces trained, ids in an order that every process repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bertmill.config import TokenizerSection
from bertmill.errors import TokenizerError
from bertmill.text.stretches import split_at_blanks
from bertmill.text.tokenizer import (
    CONTINUATION,
    LONGEST_WORD,
    Tokenizer,
    make_wordpiece,
)

_WORDS_AT_ONCE = 1000


def train_tokenizer(texts: Iterable[str], section: TokenizerSection) -> Tokenizer:
    """Train the vocabulary of the recipe.

    Ids are in canonical order: special tokens, then falling count, ties by text. The same texts
    give the same bytes in every process.

    Parameters
    ----------
    texts : iterable of str
        Words are counted as they pass; both kinds are made of these counts (WordPiece: Schuster
        and Nakajima 2012, as ``tokenizers`` trains it by pair counts).

    Raises
    ------
    TokenizerError
        The texts hold no words, or none that is frequent enough.
    """
    counts = _count_words(texts, _build(section.special_tokens, section))
    if section.kind == "wordpiece":  # which takes no longer words
        counts = Counter({word: n for word, n in counts.items() if len(word) <= LONGEST_WORD})
    if not counts:
        raise TokenizerError("tokenizer", "the corpus holds no words", "give a corpus with text")
    if section.kind == "word":
        kept = Counter({word: n for word, n in counts.items() if n >= section.min_frequency})
    else:
        kept = _count_pieces(counts, section)
    for special in section.special_tokens:
        kept.pop(special, None)
    ranked = sorted(kept, key=lambda token: (-kept[token], token))
    tokens = [*section.special_tokens, *ranked][: section.vocab_size]
    return Tokenizer(_build(tokens, section), section.special_tokens)


def _build(tokens: Sequence[str], section: TokenizerSection) -> tokenizers.Tokenizer:
    """Make a tokenizer of the recipe's kind of a vocabulary in the order of its ids."""
    if section.kind == "wordpiece":
        return make_wordpiece(
            tokens, section.special_tokens, section.lowercase, section.strip_accents
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, section.unk_token))
    if section.lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = split_at_blanks()
    backend.add_special_tokens(list(section.special_tokens))
    return backend


def _count_words(texts: Iterable[str], empty: tokenizers.Tokenizer) -> Counter[str]:
    """Count words; only distinct stretches between blanks are split further, which is the same."""
    stretches: Counter[str] = Counter()
    for text in texts:
        stretches.update(text.replace("\n", " ").split(" "))
    counts: Counter[str] = Counter()
    for stretch, n in stretches.items():
        plain = empty.normalizer.normalize_str(stretch) if empty.normalizer else stretch
        for word, _ in empty.pre_tokenizer.pre_tokenize_str(plain):
            counts[word] += n
    return counts


def _count_pieces(counts: Counter[str], section: TokenizerSection) -> Counter[str]:
    """Train WordPiece and count each piece over the words it was trained on.

    The trainer breaks ties by id and numbers single characters in the order of a hash map: giving
    them to it ready numbered, as many as half of the vocabulary holds, is what makes its choice of
    characters and merges repeatable.
    """
    characters: Counter[str] = Counter()
    inside: set[str] = set()
    for word, n in counts.items():
        inside.update(word[1:])
        for character in word:
            characters[character] += n
    room = (section.vocab_size - len(section.special_tokens)) // 2
    kept: list[str] = []
    alphabet: list[str] = []
    for character in sorted(characters, key=lambda c: (-characters[c], c)):
        forms = [character, CONTINUATION + character][: 1 + (character in inside)]
        if len(alphabet) + len(forms) > max(room, 2):
            break
        kept.append(character)
        alphabet += forms
    trainer = trainers.WordPieceTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=[*section.special_tokens, *alphabet],
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token=section.unk_token))
    learner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    learner.train_from_iterator(_repeat_by_count(counts), trainer)
    pieces: Counter[str] = Counter(dict.fromkeys(learner.get_vocab(), 0))
    model = learner.model  # alone: the words are normalized and split already
    for word, n in counts.items():
        for token in model.tokenize(word):
            pieces[token.value] += n
    return pieces


def _repeat_by_count(counts: Counter[str]) -> Iterator[str]:
    """Repeat each word as often as it was counted, which is how the trainer learns of counts."""
    for word, n in counts.items():
        for done in range(0, n, _WORDS_AT_ONCE):
            yield f"{word} " * min(n - done, _WORDS_AT_ONCE)
