"""Which GPUs does a workload ask for? What `H100:8`, `A100:80GB:2`, `24GB..40GB:2`, `H100:0.5` and `A100:1g.10gb` mean.

Parts are joined by `:`, the model first, the others in any order: a memory size or range (`80GB`, `24GB..40GB`, `24GB..`,
`..40GB`), a count (`2`), a fraction of a GPU (`0.5`) or a MIG profile (`1g.10gb`). Reads no machine; `placement/` asks it what
matches.

A vendor's "80GB" is anything from 80 x 10^9 to 80 x 2^30 bytes, and drivers keep some of it back: an "80GB" GPU reports 81559
MiB, a "40GB" one 40536 MiB, a "141GB" one 143771 MiB. So an exact size matches when the GPU's memory, counted in GB or in GiB,
is within a half or within 1 % of the number asked; a range counts its lower end in GB (3 % less will do) and its upper end in
GiB (1 % more will do).
"""

from __future__ import annotations

import re
from decimal import Decimal

import msgspec

from steelyard.errors import Refused

_GB = 10**9
_GIB = 1 << 30
#: more than any machine holds, partitions counted
_COUNT_MAX = 1024
_MEMORY_MAX_GB = 1_000_000
_TEXT_MAX = 120
_GRAMMAR = "write [MODEL][:MEMORY][:COUNT], such as H100:8, A100:80GB:2, 24GB..40GB:2, H100:0.5 or A100:1g.10gb"

_SIZE = r"(\d{1,7}(?:\.\d{1,9})?)GB"
_EXACT = re.compile(_SIZE, re.ASCII | re.IGNORECASE)
_RANGE = re.compile(rf"(?:{_SIZE})?\.\.(?:{_SIZE})?", re.ASCII | re.IGNORECASE)
_COUNT = re.compile(r"\d+", re.ASCII)
_FRACTION = re.compile(r"\d*\.\d{1,6}", re.ASCII)
_PROFILE = re.compile(r"(?:[1-9]c\.)?[1-9]g\.\d{1,4}gb(?:[+-][a-z]+(?:\.[a-z]+)?){0,2}", re.ASCII | re.IGNORECASE)
_MODEL = re.compile(r"[A-Za-z](?:[A-Za-z0-9 ._-]*[A-Za-z0-9])?", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9]+", re.ASCII)


class GpuDemand(msgspec.Struct, frozen=True):
    #: part of the model's name, as people say it (`H100`, `RTX 4090`); None: any model
    model: str | None = None
    #: whole GPUs, or parts (each of another slice of hardware) with `fraction` or `mig_profile`; > 0
    count: int = 1
    memory_min_bytes: int | None = None
    memory_max_bytes: int | None = None
    #: 0 < fraction < 1: a share of one GPU that others may share too; None: whole GPUs
    fraction: float | None = None
    #: `1g.10gb`: an instance with that profile
    mig_profile: str | None = None

    def matches_name(self, name: str) -> bool:
        """`H100` is in `NVIDIA H100 80GB HBM3`, but not in `GH1000`: whole words in their order, upper and lower case alike."""
        if self.model is None:
            return True
        asked, words = _words(self.model), _words(name)
        return any(words[at : at + len(asked)] == asked for at in range(len(words) - len(asked) + 1))

    def matches_memory(self, memory_bytes: int | None) -> bool:
        """Is a GPU with that memory meant? One whose memory nobody told is not, once memory was asked for."""
        low, high = self.memory_min_bytes, self.memory_max_bytes
        if low is None and high is None:
            return True
        if memory_bytes is None:
            return False
        if low is not None and low == high:
            nominal = low / _GB
            return any(abs(memory_bytes / unit - nominal) <= max(0.5, nominal / 100) for unit in (_GB, _GIB))
        return (low is None or memory_bytes >= low * 0.97) and (high is None or memory_bytes <= high / _GB * _GIB * 1.01)


def parse_gpu_demand(text: str) -> GpuDemand:
    """Raises Refused with one sentence that shows the grammar."""
    if len(text) > _TEXT_MAX:
        raise _refused(text, "that is too long")
    parts = [part.strip() for part in text.split(":")]
    found: dict[str, object] = {}
    for place, part in enumerate(parts):
        kind, fields = _parse_part(part, text, first=place == 0)
        if kind in found:
            raise _refused(text, f"it names a {kind} twice")
        found[kind] = None
        found.update(fields)
    if "fraction" in found and "MIG profile" in found:
        raise _refused(text, "a MIG profile is a part already and takes no fraction")
    return msgspec.convert({name: found[name] for name in GpuDemand.__struct_fields__ if name in found}, GpuDemand)


def format_gpu_demand(demand: GpuDemand) -> str:
    """The text that `parse_gpu_demand` reads back into the same demand."""
    parts: list[str] = [demand.model] if demand.model is not None else []
    low, high = demand.memory_min_bytes, demand.memory_max_bytes
    if low is not None and low == high:
        parts.append(_format_size(low))
    elif low is not None or high is not None:
        parts.append(f"{'' if low is None else _format_size(low)}..{'' if high is None else _format_size(high)}")
    if demand.mig_profile is not None:
        parts.append(demand.mig_profile)
    if demand.fraction is not None:
        parts.append(f"{demand.fraction:.6f}".rstrip("0"))
    if demand.count != 1 or not parts:
        parts.append(str(demand.count))
    return ":".join(parts)


def check_gpu_demand(demand: GpuDemand) -> str | None:
    """What is wrong with a demand that came as fields, not as text; None where nothing is."""
    try:
        written = parse_gpu_demand(format_gpu_demand(demand))
    except (Refused, ArithmeticError, ValueError) as err:
        return str(err)
    return None if written == demand else f"{format_gpu_demand(demand)!r} is no demand for GPUs; {_GRAMMAR}"


def _parse_part(part: str, text: str, first: bool) -> tuple[str, dict[str, object]]:
    """What kind of part it is, and the fields that it sets."""
    if exact := _EXACT.fullmatch(part):
        size = _parse_size(exact[1], text)
        return "memory", {"memory_min_bytes": size, "memory_max_bytes": size}
    if part != ".." and (bounds := _RANGE.fullmatch(part)):
        low, high = (None if bound is None else _parse_size(bound, text) for bound in bounds.groups())
        if low is not None and high is not None and low > high:
            raise _refused(text, f"the range {part} is empty")
        return "memory", {"memory_min_bytes": low, "memory_max_bytes": high}
    if _COUNT.fullmatch(part):
        if not 1 <= int(part) <= _COUNT_MAX:
            raise _refused(text, f"the count must be from 1 to {_COUNT_MAX}")
        return "count", {"count": int(part)}
    if _FRACTION.fullmatch(part):
        if not 0 < float(part) < 1:
            raise _refused(text, "a fraction of a GPU lies between 0 and 1")
        return "fraction", {"fraction": float(part)}
    if _PROFILE.fullmatch(part):
        return "MIG profile", {"mig_profile": part.lower()}
    if first and _MODEL.fullmatch(part):
        return "model", {"model": part}
    raise _refused(
        text, f"{part[:40]!r} is neither a count, a fraction, a memory size nor a MIG profile" if part else "a part is empty"
    )


def _parse_size(digits: str, text: str) -> int:
    size = Decimal(digits)
    if not 0 < size <= _MEMORY_MAX_GB:
        raise _refused(text, "a GPU's memory is more than 0GB")
    return int(size * _GB)


def _format_size(size: int) -> str:
    return f"{(Decimal(size) / _GB).normalize():f}GB"


def _words(name: str) -> list[str]:
    return _WORD.findall(name.lower())


def _refused(text: str, why: str) -> Refused:
    return Refused(f"{text[:60]!r} is no demand for GPUs: {why}; {_GRAMMAR}", code="bad-gpus")
