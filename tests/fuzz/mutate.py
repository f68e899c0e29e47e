"""Hostile bytes from good ones, and hostile values in good JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

# What readers trip over: names of special tokens, NUL, half and invisible characters, long and deep
# things, numbers that do not fit, names that lead elsewhere, headers that ask for the memory.
SNIPPETS: list[bytes] = [
    b"[PAD]", b"[UNK]", b"[CLS]", b"[SEP]", b"[MASK]", b"<unk>", b"<mask>", b"<cls>", b"<sep>",
    b"\0", b"\0" * 64, b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\xf4\x90\x80\x80",
    "\u202e".encode(), "\u200f\u200e".encode(), "\u2028".encode(), "\u0301".encode() * 40,
    "\U000e0001".encode(), "\u4e2d\u6587".encode(), "\u0130".encode(), "\ufb03".encode(),
    b"\r", b"\n", b"\n\n", b"\r\n", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\x1b[2J\x07",
    b" . ", b" = A = \n", b" = = B = = \n", b"...!?!?,;:", b"Dr. X. went.", b"a" * 700,
    b"word " * 200, b"\\ud800", b"\\u0000", b"null", b"true", b"NaN", b"-Infinity", b"1e999",
    b"-1", b"0", b"4294967296", b"9223372036854775808", b"9" * 400, b"9" * 5000, b"1e5000",
    b"[" * 3000, b'{"a":' * 3000, b"../../x", b"/dev/zero", b"/dev/stdin", b"..", b"/",
    b"{}", b"[]", b'""', b'"', b",", b":", b"[[", b"=", b"x = 1\n", b"[train]\n", b"[a.b]\n",
    b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80",
    b"\xff" * 9 + b"\x01", b"PAR1", b"ARROW1", b"\x93NUMPY", b"\x1f\x8b\x08",
]  # fmt: skip

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 2**16, 2**24, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64,
    -(2**63), 10**300, 10**4000, 0.0, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"),
    "", " ", "0", "a", "\0", "\ud800", "\u202e", "\n", "\x1b[2J", "\u2028", "..", "../../x", "/",
    "/dev/zero", "/dev/stdin", "[MASK]", "[UNK]", "##", "text", "a" * 5000, "\u0301" * 99, "int32",
    [], {}, [[]], [{}], {"": {}}, [None], {"a": None}, [0] * 2000, [""], ["a"], [-1], [2**63],
]  # fmt: skip


class Choices:
    """Decisions read from bytes; when these end, every decision is the first choice."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        """Choose a number from 0 to `count` - 1."""
        size = 1 if count <= 256 else 2
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "little") % max(1, count)

    def pick(self, options: Sequence[Any]) -> Any:
        """Choose one of several."""
        return options[self.below(len(options))]

    def rest(self) -> bytes:
        """Take the bytes that are left."""
        taken, self._at = self._data[self._at :], len(self._data)
        return taken

    @property
    def are_over(self) -> bool:
        """Whether there is nothing left to decide by."""
        return self._at >= len(self._data)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change bytes in one to eight places; the same `rng` gives the same bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            out[at:at] = rng.choice(SNIPPETS)
        elif kind == 3:
            snippet = rng.choice(SNIPPETS)
            out[at : at + len(snippet)] = snippet
        elif kind == 4:
            del out[at : at + rng.choice((1, 1, 2, 4, 8, 64, 1000))]
        elif kind == 5:
            out[at:at] = out[at : at + rng.choice((1, 4, 16, 256))] * rng.choice((1, 2, 20))
        elif kind == 6:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 8, 40)))
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def hostile_json(tree: Any, choices: Choices) -> str:
    """Change up to four values of a tree of JSON as `choices` say; none when they are over."""
    tree = json.loads(json.dumps(tree))
    for _ in range(4):
        if choices.are_over:
            break
        tree = _change(tree, choices)
    return json.dumps(tree)


def _change(node: Any, choices: Choices) -> Any:
    keys = _keys(node)
    if keys and choices.below(8):  # mostly further down
        key = keys[choices.below(len(keys))]
        action = choices.below(12) if not _keys(node[key]) or not choices.below(6) else -1
        if action == -1:
            node[key] = _change(node[key], choices)
        elif action == 0:
            del node[key]
        elif action == 1:
            node[key] = copy.deepcopy(node[choices.pick(keys)])
        elif action == 2 and isinstance(node, dict):
            node[choices.pick(["", "\ud800", "x", "../x", choices.pick(keys)])] = node.pop(key)
        elif action == 3 and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        else:
            node[key] = _hostile_value(node[key], choices)
        return node
    return _hostile_value(node, choices)


def _keys(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node)
    return list(range(len(node))) if isinstance(node, list) else []


def _hostile_value(value: Any, choices: Choices) -> Any:
    kind = choices.below(4)
    if kind == 0 and isinstance(value, int | float) and abs(value) < 2**64:
        return choices.pick([value + 1, value - 1, -value, value * 2, str(value), value + 0.5])
    if kind == 0 and isinstance(value, str):
        return choices.pick([value + "\0", value[1:], "../" + value, value * 50, value + "\ud800"])
    if kind == 1:
        return [value]
    return copy.deepcopy(choices.pick(HOSTILE))
