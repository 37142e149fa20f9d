"""How much is "4GB", how long is "5m", which signal is "TERM"? One parser and one writer for sizes, one for the others. Pure.

Sizes: a plain number is bytes; `k M G T` with an optional `B` are powers of 1000, with `iB` powers of 1024 (the spelling of
SI and IEC). A bare letter in lower case means the same as in upper case (`1g` = 1 GB).
Durations: a plain number is seconds; `ms s m h d`, also joined: `1h30m`.
"""

from __future__ import annotations

import math
import re
import signal
from typing import TYPE_CHECKING

from steelyard.errors import Refused

if TYPE_CHECKING:
    from steelyard.model.function import ScaleOn

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(i?)[bB]?\s*$", re.ASCII)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

SIZE_MAX_BYTES = 1 << 60
DURATION_MAX_S = 10 * 365 * 86400.0


def parse_bytes(text: str) -> int:
    """ "4GB" -> 4000000000. Refuses zero, fractions of a byte that round to zero, and anything it does not know."""
    match = _SIZE.match(text)
    if match is None or (match[3] and not match[2]):
        raise Refused(f"{text!r} is no size. Write for example 512MB, 4GB, 1.5GiB.", code="bad-size")
    size = round(float(match[1]) * (1024 if match[3] else 1000) ** _POWER[match[2].lower()])
    if not 0 < size <= SIZE_MAX_BYTES:
        raise Refused(f"The size {text!r} is out of range (more than 0, at most 1 EiB).", code="bad-size")
    return size


def parse_seconds(text: str) -> float:
    """ "1h30m" -> 5400.0; "60" and "60s" -> 60.0; "500ms" -> 0.5; zero is a duration."""
    stripped = text.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", stripped):
        seconds = float(stripped)
    elif stripped and _DURATION.sub("", stripped) == "":
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION.findall(stripped))
    else:
        raise Refused(f"{text!r} is no duration. Write for example 500ms, 60s, 5m, 1h30m.", code="bad-duration")
    if not math.isfinite(seconds) or seconds > DURATION_MAX_S:
        raise Refused(f"The duration {text!r} is out of range (at most ten years).", code="bad-duration")
    return seconds


def parse_share(text: str) -> float | None:
    """`5%` or `0.05`; None for `off`. Raises Refused."""
    if text == "off":
        return None
    number, sign = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / sign
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise Refused(f"{text!r} is no share. Write 5%, 0.05 or off.", code="bad-share")
    return share


def render_bytes(size: int | None) -> str:
    """4000000000 -> "4.0 GB"; None -> "-"."""
    if size is None:
        return "-"
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB", "TB", "PB", "EB"):
        value /= 1000
        # 999.95 would be written "1000.0"
        if value < 999.95 or unit == "EB":
            return f"{value:.1f} {unit}"
    return f"{size} B"


def parse_signal(text: str) -> int:
    """ "TERM", "SIGTERM", "15" -> 15."""
    name = text.upper()
    if name.isdigit() and 1 <= int(name) <= 64:
        return int(name)
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise Refused(f"{text!r} is no signal. Write for example TERM, INT or 9.", code="bad-signal") from None


def parse_scale_on(words: tuple[str, ...]) -> tuple[ScaleOn, ...]:
    """METRIC=TARGET each. Raises Refused."""
    from steelyard.model.function import ScaleOn  # imported here: commands about jobs need none of it

    found: list[ScaleOn] = []
    for word in words:
        metric, _, target = word.partition("=")
        try:
            found.append(ScaleOn(metric, float(target)))
        except ValueError:
            text = f"--scale-on {word!r}: write METRIC=TARGET, such as vllm:num_requests_waiting=4."
            raise Refused(text, code="bad-scale-on") from None
    return tuple(found)
