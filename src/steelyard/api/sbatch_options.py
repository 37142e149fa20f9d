"""What does the value of one `sbatch` option mean? Dependencies, signals, exports, sizes, counts, GPUs. Pure; raises Refused.

`OPTION_TABLE` is all that `sbatch` knows with what becomes of it here; `render_option_table` writes it as Markdown.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import NamedTuple

from steelyard.errors import Refused
from steelyard.model.batch import PRIORITY_DEFAULT, PRIORITY_MAX, Dependency, DependencyKind, Warn
from steelyard.model.gpu_demand import GpuDemand, check_gpu_demand
from steelyard.model.ids import JobId
from steelyard.runtime.slurm.getopt import MAY, NONE
from steelyard.runtime.slurm.sbatch_table import OPTIONS as OPTION_TABLE

__all__ = ["OPTION_TABLE", "render_option_table"]

_MEMORY = re.compile(r"(\d{1,15})\s*([kmgtKMGT]?)(?:i?[bB])?", re.ASCII)
_KIB = {"k": 1, "m": 2, "": 2, "g": 3, "t": 4}
_COUNT = re.compile(r"\d{1,9}", re.ASCII)
_NODES = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)
_JOB = re.compile(r"(?:j-)?0*(\d{1,15})(?:_(\d{1,9}|\*))?", re.ASCII)
_SIGNAL = re.compile(r"(?:([BR]{1,2}):)?([A-Za-z0-9+]{1,12})(?:@(\d{1,6}))?", re.ASCII | re.IGNORECASE)
_GPU_WORD = re.compile(r"[ _-]+")
_MIG = re.compile(r"\d+g\.\d+gb", re.ASCII)
_GPU_GB = re.compile(r"(\d{1,4})gb?", re.ASCII)
#: parts of a Slurm type that say nothing of the model
_GPU_NOISE = {"nvidia", "tesla", "geforce", "amd", "instinct", "pcie", "sxm", "sxm2", "sxm3", "sxm4", "sxm5", "nvl"}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}")
#: what a job inherits from another job, or from `sbatch`, by mistake only
_NEVER_EXPORTED = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "STEELYARD_")
_KINDS = {
    "after": DependencyKind.STARTED,
    "afterok": DependencyKind.OK,
    "afternotok": DependencyKind.NOT_OK,
    "afterany": DependencyKind.ANY,
}
#: seconds before the limit when --signal names none
_SIGNAL_BEFORE_S = 60
_SIGNAL_BEFORE_MAX_S = 65_535


def render_option_table() -> str:
    """Markdown: what becomes of each option that does something; those that do nothing by their reasons."""
    rows = ["| option | becomes |", "| --- | --- |"]
    others: dict[tuple[str, str], list[str]] = {}
    for option in OPTION_TABLE:
        value = {NONE: "", MAY: "[=…]"}.get(option.value, "=…")
        if option.does == "acts":
            short = f", `-{option.short}`" if option.short else ""
            rows.append(f"| `--{option.name}{value}`{short} | {option.becomes} |")
        else:
            others.setdefault((option.does, option.becomes), []).append(f"`--{option.name}`")
    words = {"ignored": "Named, and not acted on", "refused": "Refused", "client": "For the command itself"}
    for does, title in words.items():
        rows += ["", f"{title}:", ""]
        rows += [f"- {', '.join(names)}: {why}" for (kind, why), names in others.items() if kind == does]
    return "\n".join(rows) + "\n"


def parse_count(text: str, option: str, least: int = 1) -> int:
    stripped = text.strip()
    if not _COUNT.fullmatch(stripped) or int(stripped) < least:
        raise Refused(f"--{option} takes a whole number of at least {least}, not {text[:40]!r}", code="bad-number")
    return int(stripped)


def parse_nodes(text: str) -> int:
    """The fewest that will do."""
    match = _NODES.fullmatch(text.strip())
    if match is None or int(match[1]) < 1 or int(match[2] or match[1]) < int(match[1]):
        raise Refused(f"--nodes takes a number or a range such as 1-4, not {text[:40]!r}", code="bad-number")
    return int(match[1])


def parse_memory(text: str, option: str) -> int:
    """Bytes; MiB where no unit is given, powers of 1024 as in Slurm."""
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise Refused(
            f"--{option} takes whole numbers with K, M, G or T, such as 512M or 16G, not {text[:40]!r}", code="bad-memory"
        )
    return int(match[1]) * 1024 ** _KIB[match[2].lower()]


def parse_gpus(text: str, option: str) -> GpuDemand | None:
    """`2`, `a100:2`, `a100`, `nvidia_a100_80gb:1`, `1g.10gb:2`; None for 0."""
    if "," in text:
        raise Refused(f"--{option} names several types of GPU; all of a job's GPUs are of one type here", code="bad-gpus")
    kind, _, number = text.strip().rpartition(":")
    if not kind and not _COUNT.fullmatch(number):
        kind, number = number, "1"
    count = parse_count(number, option, least=0)
    if count == 0:
        return None
    words = [word for word in _GPU_WORD.split(kind.lower()) if word and word not in _GPU_NOISE]
    mig = next((word for word in words if _MIG.fullmatch(word)), None)
    memory = next((int(match[1]) * 10**9 for word in words if (match := _GPU_GB.fullmatch(word))), None)
    model = " ".join(word for word in words if word != mig and not _GPU_GB.fullmatch(word))
    demand = GpuDemand(model or None, count, memory, memory, None, mig)
    if wrong := check_gpu_demand(demand):
        raise Refused(f"--{option}={text[:40]} names no type of GPU: {wrong}", code="bad-gpus")
    return demand


def parse_gres(text: str) -> GpuDemand | None:
    """`gpu`, `gpu:2`, `gpu:a100:2(S:0-1)`; `none`."""
    found: GpuDemand | None = None
    for item in re.sub(r"\([^()]*\)", "", text).split(","):
        name, _, rest = item.strip().removeprefix("gres/").replace("=", ":").partition(":")
        if name.lower() in ("none", ""):
            continue
        if name.lower() != "gpu":
            raise Refused(f"--gres={text[:60]}: this machine has no {name[:40]!r}, only gpu", code="bad-gres")
        if found is not None:
            raise Refused(f"--gres={text[:60]} asks for GPUs twice; all of a job's GPUs are of one type here", code="bad-gres")
        found = parse_gpus(rest or "1", "gres")
    return found


def parse_dependencies(text: str) -> tuple[Dependency, ...]:
    """`afterok:12:13,afterany:14_3`; all must hold."""
    if "?" in text:
        raise _no_dependency(text, "`?` (any of them is enough) does not exist here: list with `,` what must all hold")
    found: list[Dependency] = []
    for item in text.strip().split(","):
        kind, _, jobs = item.strip().partition(":")
        if kind.lower() == "singleton":
            raise _no_dependency(text, "`singleton` does not exist here: name the job to wait for with afterany:ID")
        if kind.lower() == "aftercorr":
            raise _no_dependency(text, "`aftercorr` does not exist here: afterok:ID waits for the whole array")
        if kind.lower() not in _KINDS:
            raise _no_dependency(text, f"{kind[:40]!r} is no kind of dependency")
        for job in jobs.split(":"):
            if "+" in job:
                raise _no_dependency(text, "`+minutes` does not exist here: use --begin in the later job")
            match = _JOB.fullmatch(job.strip())
            if match is None:
                raise _no_dependency(text, f"{job[:40]!r} is no job's id")
            element = "" if match[2] in (None, "*") else f"_{match[2]}"
            found.append(Dependency(JobId(f"j-{int(match[1]):06d}{element}"), _KINDS[kind.lower()]))
    return tuple(dict.fromkeys(found))


def _no_dependency(text: str, why: str) -> Refused:
    form = "Write after, afterok, afternotok or afterany with ids, such as afterok:12:13"
    return Refused(f"--dependency={text[:60]}: {why}. {form}.", code="bad-dependency")


def parse_signal(text: str) -> Warn:
    """`[B:]USR1[@120]`. Without B: it is for what `srun` started."""
    match = _SIGNAL.fullmatch(text.strip())
    number = None if match is None else signal_number(match[2])
    if match is None or number is None or int(match[3] or 0) > _SIGNAL_BEFORE_MAX_S:
        form = f"[B:]SIGNAL[@SECONDS], such as USR1@120, with at most {_SIGNAL_BEFORE_MAX_S} seconds"
        raise Refused(f"--signal takes {form}, not {text[:40]!r}", code="bad-signal")
    before_s = float(match[3]) if match[3] is not None else float(_SIGNAL_BEFORE_S)
    return Warn(number, before_s, steps_only="B" not in (match[1] or "").upper())


def signal_number(text: str) -> int | None:
    """`USR1`, `SIGUSR1`, `10`."""
    if text.isdigit():
        return int(text) if 1 <= int(text) <= 64 else None
    name = "SIG" + text.upper().removeprefix("SIG")
    return int(signal.Signals[name]) if name in signal.Signals.__members__ else None


class Exported(NamedTuple):
    env: dict[str, str]
    #: names that a job can't be given
    left_out: tuple[str, ...]


def export_variables(text: str | None, env: Mapping[str, str], *, inherit: bool = True) -> Exported:
    """What of the caller's `env` the job gets: ALL, NONE (or NIL), names and NAME=VALUE, in any mixture. Without `inherit` only
    what is named."""
    chosen: dict[str, str] = {}
    everything = text is None
    for item in [] if text is None else _split_exports(text):
        name, equals, value = item.partition("=")
        if equals:
            if not _VARIABLE.fullmatch(name):
                raise Refused(f"--export: {name[:40]!r} can't be the name of a variable", code="bad-env")
            chosen[name] = value
        elif name.upper() == "ALL":
            everything = True
        elif name.upper() not in ("NONE", "NIL", "") and name in env:
            chosen[name] = env[name]
    inherited = {name: value for name, value in env.items() if not name.startswith(_NEVER_EXPORTED)}
    inherited = inherited if everything and inherit else {}
    merged = inherited | chosen
    good = {name: value for name, value in merged.items() if _VARIABLE.fullmatch(name) and "\0" not in value}
    return Exported(good, tuple(sorted(set(merged) - set(good))))


def _split_exports(text: str) -> list[str]:
    """At commas that are not between single quotes, as in Slurm: `A='1,2',B=3`."""
    parts, quoted = [""], False
    for char in text:
        if char == "'":
            quoted = not quoted
        elif char == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    if quoted:
        raise Refused(f"--export={text[:60]}: a single quote is not closed", code="bad-env")
    return [part.strip() if "=" not in part else part for part in parts]


def lower_priority(nice: str | None) -> int:
    """Each 10 of nice lower by 1; what would raise it is left at the default, as Slurm does for users."""
    match = re.fullmatch(r"-?\d{1,10}", "100" if nice is None else nice.strip(), re.ASCII)
    if match is None:
        raise Refused(f"--nice takes a whole number, not {(nice or '')[:40]!r}", code="bad-number")
    return min(PRIORITY_DEFAULT, max(0, PRIORITY_DEFAULT - -(-int(match[0]) // 10)))


def parse_priority(text: str) -> int | None:
    """0 to `PRIORITY_MAX`; None for numbers of another scale."""
    if text.strip().upper() == "TOP":
        return None
    number = parse_count(text, "priority", least=0)
    return number if number <= PRIORITY_MAX else None
