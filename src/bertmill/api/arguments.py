"""What the verbs are given, checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

from bertmill.errors import InputError

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def parse_duration(text: str | float, where: str) -> float:
    """Read ``90``, ``90s``, ``10m``, ``1h30m`` as seconds; `where` names it in the error."""
    if isinstance(text, int | float):
        seconds = float(text)
    else:
        found = re.fullmatch(
            r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip()
        )
        parts = [float(part or 0) for part in found.groups()] if found else [0.0]
        seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not (0 < seconds < math.inf):
        raise InputError(where, f"{text!r} is not a length of time", "write 90s, 10m or 1h30m")
    return seconds


def refuse_no_name(option: str, value: str | os.PathLike[str] | None) -> None:
    """Raise `InputError` for an empty name, which would be the current folder."""
    if value is not None and not str(value):
        raise InputError(option, "has no name", "give the name of a file or folder")


def list_sources(sources: Sources, option: str) -> list[str]:
    """List sources as texts; none may be without a name."""
    listed = [sources] if isinstance(sources, str | os.PathLike) else sources
    for source in listed:
        refuse_no_name(option, source)
    return [str(source) for source in listed]


def refuse_settings_without_text(settings: Sequence[str], held_out: Sequence[str]) -> None:
    """Raise `InputError` for settings of held-out text where there is none."""
    if settings and not held_out:
        raise InputError(
            f"--set {settings[0]}", "says how held-out text is read", "use it with --held-out"
        )
