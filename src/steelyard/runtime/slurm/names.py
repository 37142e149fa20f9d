"""Which hosts does `a[1-3],b` name, which indices does `0-2,5`, and which file `out-%j-%t.txt`? Slurm's notations."""

from __future__ import annotations

import itertools
import re

#: what Slurm puts for %a outside of arrays (NO_VAL)
_NO_INDEX = 4_294_967_294
_PATTERN = re.compile(r"%(%|(\d{0,9})([AabJjNnstux]))", re.ASCII)
#: Slurm's own bound for the padding of numbers
_PAD_MAX = 10
_HOSTS_MAX = 65_536
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_COMMA = re.compile(r",(?![^\[]*\])")
_NUMBERED = re.compile(r"(.*?)(\d+)")


def fill_pattern(
    pattern: str,
    *,
    job: int,
    array_job: int | None,
    array_index: int | None,
    name: str,
    user: str,
    node: str,
    step: str = "batch",
    task: int = 0,
) -> str:
    """`job` is the job's own number, `array_job` its array's. Names can't lead out of the folder: their slashes become _."""
    index = _NO_INDEX if array_index is None else array_index
    numbers = {
        "A": job if array_job is None else array_job,
        "a": index,
        "b": index % 10,
        "j": job,
        "n": 0,
        "t": task,
    }
    texts = {"J": str(job) if step == "batch" else f"{job}.{step}", "N": node.partition(".")[0], "s": step, "u": user, "x": name}

    def fill(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        if match[3] in numbers:
            return f"{numbers[match[3]]:0{min(int(match[2] or 0), _PAD_MAX)}d}"
        return texts[match[3]].replace("/", "_").replace("\0", "_")

    return _PATTERN.sub(fill, pattern)


def expand_hosts(text: str) -> list[str]:
    """Raises ValueError with a sentence."""
    names: list[str] = []
    for part in _COMMA.split(text):
        pieces = _BRACKET.split(part.strip())
        if not part.strip() or any("[" in piece or "]" in piece for piece in pieces[::2]):
            raise ValueError(f"{text[:60]!r} is no list of hosts")
        choices = [expand_numbers(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
        for combined in itertools.islice(itertools.product(*choices), _HOSTS_MAX + 1 - len(names)):
            names.append("".join(combined))
        if len(names) > _HOSTS_MAX:
            raise ValueError(f"{text[:60]!r} names more than {_HOSTS_MAX} hosts")
    return names


def expand_numbers(text: str) -> list[str]:
    """`01-03,7` -> 01, 02, 03, 7."""
    found: list[str] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", item.strip(), re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]) or int(match[2] or 0) - int(match[1]) >= _HOSTS_MAX:
            raise ValueError(f"{item[:40]!r} is no range of numbers")
        found += [f"{number:0{len(match[1])}d}" for number in range(int(match[1]), int(match[2] or match[1]) + 1)]
    return found


def join_hosts(names: list[str]) -> str:
    """`a1 a2 a3 b` -> `a[1-3],b`."""
    groups: dict[tuple[str, int], list[int]] = {}
    plain: list[str] = []
    for name in dict.fromkeys(names):
        match = _NUMBERED.fullmatch(name)
        if match is None:
            plain.append(name)
        else:
            groups.setdefault((match[1], len(match[2])), []).append(int(match[2]))
    found: list[str] = []
    for (prefix, width), numbers in groups.items():
        runs = join_numbers(numbers, width)
        found.append(f"{prefix}{runs}" if runs.isdigit() else f"{prefix}[{runs}]")
    return ",".join(found + plain)


def join_numbers(numbers: list[int], width: int = 0) -> str:
    """0, 1, 2, 5 -> `0-2,5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]:0{width}d}" + (f"-{run[-1]:0{width}d}" if len(run) > 1 else "") for run in runs)
