"""The tokenizer: opened, saved, used, and identified by what it does, not by its size."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from bertmill.config import TokenizerSection
from bertmill.errors import TokenizerError
from bertmill.text.stretches import Encoded, StretchCache, end_to_end, flatten, groups

CONTINUATION = "##"
_LARGEST_VOCABULARY = 2**24
_FREQUENT_MARKS = ",.()\"'-:;!?/"
LONGEST_WORD = 100
"""Characters; a longer word is unknown to WordPiece as published, whatever its pieces."""
_CHARACTERS_A_RESULT = 100
"""Memory of the library's result for a text besides its characters, counted in characters."""
_SPECIAL_KEYS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


class Tokenizer:
    """A tokenizer of the ``tokenizers`` library and what bertmill needs to know of it.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    special_tokens : sequence of str
        Names of pad, unk, cls, sep and mask; each must be in the vocabulary.

    Raises
    ------
    TokenizerError
        A special token is not in the vocabulary, or nothing else is.

    Attributes
    ----------
    is_special : ndarray of bool, shape (V,)
    continues_word : ndarray of bool, shape (V,)
        Whether a piece belongs to the word of the piece before it (WordPiece's ``##``).
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> None:
        ids: list[int] = []
        for name in special_tokens:
            if (special_id := backend.token_to_id(name)) is None:
                raise TokenizerError(
                    "tokenizer",
                    f"the special token {name!r} is not in the vocabulary",
                    "name the five special tokens in the recipe's [tokenizer] section",
                )
            ids.append(special_id)
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor = None  # bertmill frames sequences itself
        backend.encode_special_tokens = True  # their names in a text are plain text
        self.backend = backend
        self.special_tokens = tuple(special_tokens)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        vocab = backend.get_vocab(with_added_tokens=True)
        self.size = max(vocab.values()) + 1
        if self.size > _LARGEST_VOCABULARY:  # arrays of this size follow
            raise TokenizerError(
                "tokenizer",
                f"has the id {self.size - 1:,}",
                f"give one with ids below {_LARGEST_VOCABULARY:,}",
            )
        self.is_special = np.zeros(self.size, bool)
        self.is_special[ids] = True
        if self.is_special.all():
            raise TokenizerError(
                "tokenizer",
                "the vocabulary holds no word besides the special tokens",
                "give more text, lower tokenizer.min_frequency or raise tokenizer.vocab_size",
            )
        self.continues_word = np.zeros(self.size, bool)
        if isinstance(backend.model, models.WordPiece):
            prefix = backend.model.continuing_subword_prefix
            pieces = [i for token, i in vocab.items() if token.startswith(prefix)]
            self.continues_word[pieces] = True
        # A text that spells a special token out must not become one, except the unknown token.
        self._plain = np.arange(self.size, dtype=np.int64)
        self._plain[[i for i in ids if i != self.unk_id]] = self.unk_id
        marks = _isolated_punctuation(backend)
        self._cache = (
            None
            if marks is None
            else StretchCache(self._encode_whole, self._encode_ascii_words, marks)
        )

    @cached_property
    def identity(self) -> str:
        """SHA-256 of everything that decides which ids a text becomes."""
        parts = json.loads(self.backend.to_str())
        canonical = {key: parts[key] for key in ("model", "normalizer", "pre_tokenizer")}
        canonical["added_tokens"] = [
            token for token in parts["added_tokens"] if token["content"] not in self.special_tokens
        ]
        canonical["special_tokens"] = list(self.special_tokens)
        text = json.dumps(canonical, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def mask_token(self) -> str:
        """Name of the token that stands at a masked position."""
        return self.special_tokens[4]

    def encode_words(self, text: str) -> tuple[list[int], list[int]]:
        """Turn a text into ids, and say for each id which word of the text it belongs to."""
        with _library_errors():
            encoding = self.backend.encode(text, add_special_tokens=False)
        words = [0 if word is None else word for word in encoding.word_ids]
        return [int(i) for i in self._plain[encoding.ids]], words

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Turn texts into ids end to end, and the number of ids of each text.

        Returns
        -------
        ids : ndarray of int64, shape (N,)
        lengths : ndarray of int64, shape (len(texts),)
        """
        return self._encode_whole(texts) if self._cache is None else self._cache(texts)

    def _encode_whole(self, texts: Sequence[str]) -> Encoded:
        return end_to_end(map(self._encode_some, groups(texts, _CHARACTERS_A_RESULT)))

    def _encode_some(self, texts: Sequence[str]) -> Encoded:
        with _library_errors():
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ids, lengths = flatten([encoding.ids for encoding in encodings])
        return self._plain[ids], lengths

    def _encode_ascii_words(self, words: Sequence[str]) -> Encoded:
        """Encode words that nothing but lower-casing changes: the model alone is much faster."""
        model, normalizer = self.backend.model, self.backend.normalizer
        lowercase = isinstance(normalizer, normalizers.Lowercase) or (
            isinstance(normalizer, normalizers.BertNormalizer) and normalizer.lowercase
        )
        with _library_errors():
            lists = [
                [token.id for token in model.tokenize(word.lower() if lowercase else word)]
                for word in words
            ]
        ids, lengths = flatten(lists)
        return self._plain[ids], lengths

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Name each id."""
        return [self.backend.id_to_token(int(i)) or f"[{int(i)}]" for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Join ids to readable text, special tokens included, pieces joined to words."""
        words: list[str] = []
        for i, token in zip(ids, self.tokens(ids), strict=True):
            if self.continues_word[i] and words:
                words[-1] += token.removeprefix(CONTINUATION)
            else:
                words.append(token)
        return " ".join(words)

    def save(self, folder: Path, max_length: int | None = None) -> None:
        """Write a folder that ``transformers.AutoTokenizer`` and `load_tokenizer` open.

        Parameters
        ----------
        folder : Path
        max_length : int, optional
            Tokens of a text at most, for programs that cut off what is more.
        """
        folder.mkdir(parents=True, exist_ok=True)
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        cls, sep = self.special_tokens[2], self.special_tokens[3]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, self.cls_id), (sep, self.sep_id)],
        )
        backend.save(str(folder / "tokenizer.json"), pretty=False)  # a third would be blanks
        is_wordpiece = isinstance(backend.model, models.WordPiece)
        config: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer" if is_wordpiece else "PreTrainedTokenizerFast",
            **dict(zip(_SPECIAL_KEYS, self.special_tokens, strict=True)),
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        }
        if max_length is not None:
            config["model_max_length"] = max_length
        if isinstance(backend.normalizer, normalizers.BertNormalizer):
            config["do_lower_case"] = backend.normalizer.lowercase
            config["strip_accents"] = backend.normalizer.strip_accents
            config["tokenize_chinese_chars"] = backend.normalizer.handle_chinese_chars
        _write_json(folder / "tokenizer_config.json", config)
        (folder / "vocab.txt").write_text(
            "".join(f"{token}\n" for token in self.tokens(range(self.size))), "utf-8"
        )


def load_tokenizer(path: str | Path, section: TokenizerSection | None = None) -> Tokenizer:
    """Open a tokenizer folder (``tokenizer.json`` or ``vocab.txt`` in it) or a bare ``vocab.txt``.

    Parameters
    ----------
    path : str or Path
    section : TokenizerSection, optional
        Lower-casing, accents and special tokens where the files do not say.

    Raises
    ------
    TokenizerError
        Nothing there, not a tokenizer, or without the five special tokens.
    """
    path, section = Path(path), section or TokenizerSection()
    if not path.exists():
        raise TokenizerError(path, "does not exist", "give a tokenizer folder or a vocab.txt")
    config = _read_config(path) if path.is_dir() else {}
    names = [
        _token_name(config.get(key)) or default
        for key, default in zip(_SPECIAL_KEYS, section.special_tokens, strict=True)
    ]
    try:
        if (path / "tokenizer.json").is_file():
            backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            return Tokenizer(backend, names)
        vocab_file = path / "vocab.txt" if path.is_dir() else path
        if not vocab_file.is_file():
            raise TokenizerError(
                path,
                "holds neither tokenizer.json nor vocab.txt",
                "give a folder that has one of them",
            )
        tokens = vocab_file.read_text("utf-8").removesuffix("\n").split("\n")
        lowercase = bool(config.get("do_lower_case", section.lowercase))
        accents = config.get("strip_accents")
        if accents is None:  # as published BERTs mean it: like lower-casing
            accents = config.get("do_lower_case", section.strip_accents)
        return Tokenizer(make_wordpiece(tokens, names, lowercase, bool(accents)), names)
    except TokenizerError as error:
        raise TokenizerError(path, error.what, error.fix) from None
    except Exception as error:  # the library raises bare Exception for a broken file
        message = " ".join(str(error).split())
        raise TokenizerError(
            path,
            f"is not a tokenizer ({message})",
            "give a folder with tokenizer.json or vocab.txt",
        ) from None


def split_at_blanks() -> pre_tokenizers.Split:
    """Return what splits a text into words for a word-level vocabulary."""
    return pre_tokenizers.Split(tokenizers.Regex("[ \t\r\n]+"), "removed")


def make_wordpiece(
    tokens: Sequence[str], special_tokens: Sequence[str], lowercase: bool, strip_accents: bool
) -> tokenizers.Tokenizer:
    """Make BERT's tokenizer of a vocabulary in the order of its ids."""
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for token, n in Counter(tokens).items() if n > 1)
        raise TokenizerError("tokenizer", f"the token {twice!r} is listed twice", "delete one")
    model = models.WordPiece(
        vocab, unk_token=special_tokens[1], max_input_chars_per_word=LONGEST_WORD
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([name for name in special_tokens if name in vocab])
    return backend


def _isolated_punctuation(backend: tokenizers.Tokenizer) -> str | None:
    """List frequent ASCII punctuation that this tokenizer always splits off as a word.

    None: it is not known to treat each stretch between two blanks by itself (see `StretchCache`).
    """
    normalizer, splitter = backend.normalizer, backend.pre_tokenizer
    if (
        not isinstance(normalizer, (NoneType, normalizers.BertNormalizer, normalizers.Lowercase))
        or not isinstance(backend.model, (models.WordPiece, models.WordLevel))
        # Special ones are plain text here; another may hold a blank, or be part of a word.
        or not all(token.special for token in backend.get_added_tokens_decoder().values())
    ):
        return None
    if isinstance(splitter, pre_tokenizers.BertPreTokenizer):
        return _FREQUENT_MARKS
    at_blanks = split_at_blanks().__getstate__()
    return "" if splitter is not None and splitter.__getstate__() == at_blanks else None


@contextmanager
def _library_errors() -> Iterator[None]:
    """Raise our error where the library fails: a tokenizer that loads but cannot encode."""
    try:
        yield
    except Exception as error:  # it raises bare Exception
        raise TokenizerError("tokenizer", f"cannot encode ({error})") from None


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            try:
                values = json.loads((folder / name).read_text("utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise TokenizerError(
                    folder / name, f"is not JSON ({error})", "fetch the folder again"
                ) from None
            if isinstance(values, dict):
                config.update(values)
    return config


def _token_name(value: object) -> str | None:
    """Read a special token as Hugging Face writes it: a string, or an object with ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
