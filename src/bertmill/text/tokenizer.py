"""The tokenizer: opened, saved, used, and identified by what it does, not by its size."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from bertmill.config import TokenizerSection
from bertmill.errors import TokenizerError, is_library_failure
from bertmill.text.stretches import Encoded, TextEncoder

CONTINUATION = "##"
_LARGEST_VOCABULARY = 2**24
LONGEST_WORD = 100
"""Characters; a longer word is unknown to WordPiece as published, whatever its pieces."""
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
        vocab = backend.get_vocab(with_added_tokens=True)
        for name in special_tokens:
            if name not in vocab:
                raise TokenizerError(
                    "tokenizer",
                    f"the special token {name!r} is not in the vocabulary",
                    "name the five special tokens in the recipe's [tokenizer] section",
                )
        ids = [vocab[name] for name in special_tokens]
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor = None  # bertmill frames sequences itself
        backend.encode_special_tokens = True  # their names in a text are plain text
        self.backend = backend
        self.special_tokens = tuple(special_tokens)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
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
        plain_ids = np.arange(self.size, dtype=np.int64)
        plain_ids[[i for i in ids if i != self.unk_id]] = self.unk_id
        self._encoder = TextEncoder(backend, plain_ids)

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
        return self._encoder.encode_words(text)

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Turn texts into ids end to end, and the number of ids of each text.

        Returns
        -------
        ids : ndarray of int64, shape (N,)
        lengths : ndarray of int64, shape (len(texts),)
        """
        return self._encoder.encode_batch(texts)

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
        written = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(written + "\n", "utf-8")
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
    names = list(section.special_tokens)
    for i, key in enumerate(_SPECIAL_KEYS):
        name = config.get(key)
        if isinstance(name, dict):  # as Hugging Face writes an added token
            name = name.get("content")
        if isinstance(name, str) and name:
            names[i] = name
    fix = "give a folder with tokenizer.json or vocab.txt"
    try:
        if (path / "tokenizer.json").is_file():
            backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            return Tokenizer(backend, names)
        vocab_file = path / "vocab.txt" if path.is_dir() else path
        if not vocab_file.is_file():
            raise TokenizerError(path, "holds neither tokenizer.json nor vocab.txt", fix)
        tokens = vocab_file.read_text("utf-8").removesuffix("\n").split("\n")
        lowercase = bool(config.get("do_lower_case", section.lowercase))
        accents = config.get("strip_accents")
        if accents is None:  # as published BERTs mean it: like lower-casing
            accents = config.get("do_lower_case", section.strip_accents)
        return Tokenizer(make_wordpiece(tokens, names, lowercase, bool(accents)), names)
    except TokenizerError as error:
        raise TokenizerError(path, error.what, error.fix) from None
    except BaseException as error:  # the library raises bare Exception for a broken file
        if not is_library_failure(error):
            raise
        raise TokenizerError(path, f"is not a tokenizer ({error})", fix) from None


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
