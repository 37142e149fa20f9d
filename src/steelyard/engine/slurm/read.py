"""What do Slurm's own listings say? Pure: text in, nouns out.

Read are `scontrol`'s and `squeue`'s texts. Their JSON comes from plugins that not every cluster has installed, and changed its
names with nearly each release, while the texts change little (22.05 to 26.05). Lines that say nothing known are
passed over: newer releases add words, and comments of strangers may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from steelyard.engine.slurm.arrays import list_attempts
from steelyard.model.slurm import QueueEntry, SlurmNode, SlurmPartition

#: for `QueueReader`: job and its index in an array, state, reason, start (in seconds: SLURM_TIME_FORMAT=%s), nodes, end, comment
QUEUE_FORMAT = "%i|%T|%r|%S|%N|%e|%k"

#: a name in front of `=`, at the beginning or behind a blank: values hold blanks themselves
_NAME = re.compile(r"(?:^|(?<=\s))([A-Za-z][\w/:.\[\]]*)=")
_GRES = re.compile(r"(?P<kind>[^:(),]+(?::[^:(),]+)?):(?P<count>\d+)(?P<unit>[KMGT]?)(?:\([^)]*\))?$")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NOTHING = frozenset({"(null)", "N/A", "n/a", "None", ""})


def read_settings(text: str) -> dict[str, str]:
    """Of `scontrol show config`: each setting by its own name, nothing for what isn't set."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs if value.strip() not in _NOTHING}


def read_records(text: str) -> list[dict[str, str]]:
    """Of `scontrol -o show ...`: a record for each line."""
    return [record for line in text.splitlines() if (record := read_record(line))]


def read_record(line: str) -> dict[str, str]:
    """`Name=value Other=value with blanks`. Of a name that stands there twice the first counts: what a user wrote (a comment, the
    name of a job) comes behind."""
    found: dict[str, str] = {}
    names = list(_NAME.finditer(line))
    ends = [*(name.start() for name in names[1:]), len(line)]
    for name, end in zip(names, ends, strict=False):
        found.setdefault(name[1], line[name.end() : end].strip())
    return found


def read_count(record: dict[str, str], name: str) -> int:
    """The number that a value begins with (`30 sec`); 0 where there is none."""
    match = re.match(r"\d+", record.get(name, ""))
    return int(match[0]) if match else 0


def read_nodes(text: str) -> tuple[SlurmNode, ...]:
    """Of `scontrol -o show node`."""
    return tuple(
        SlurmNode(
            name=record["NodeName"],
            cpus=read_count(record, "CPUTot"),
            sockets=read_count(record, "Sockets"),
            cores_per_socket=read_count(record, "CoresPerSocket"),
            threads_per_core=read_count(record, "ThreadsPerCore"),
            memory_bytes=read_count(record, "RealMemory") << 20,
            gres=read_gres(record.get("Gres", "")),
            state=record.get("State", ""),
            reason=_word(record, "Reason"),
            partitions=tuple(_word(record, "Partitions").split(",")) if _word(record, "Partitions") else (),
        )
        for record in read_records(text)
        if "NodeName" in record
    )


def read_partitions(text: str) -> tuple[SlurmPartition, ...]:
    """Of `scontrol -o show partition`: those that the user sees."""
    return tuple(
        SlurmPartition(
            name=record["PartitionName"],
            default=record.get("Default") == "YES",
            state=record.get("State", ""),
            time_max=record.get("MaxTime", ""),
            nodes=read_count(record, "TotalNodes"),
            cpus=read_count(record, "TotalCPUs"),
        )
        for record in read_records(text)
        if "PartitionName" in record
    )


def read_gres(text: str) -> dict[str, int]:
    """`gpu:a100:4(S:0-1),nic:2` -> {"gpu:a100": 4, "nic": 2}."""
    found: dict[str, int] = {}
    for item in re.split(r",(?![^(]*\))", text):
        match = _GRES.match(item.strip())
        if match is not None:
            count = int(match["count"]) * _UNITS[match["unit"]]
            found[match["kind"]] = found.get(match["kind"], 0) + count
    return found


def read_topology(text: str) -> dict[str, str]:
    """Of `scontrol show topology`: leaf switches, or blocks, and their nodes."""
    found: dict[str, str] = {}
    for record in read_records(text):
        name = record.get("BlockName") or (record.get("SwitchName") if record.get("Level", "0") == "0" else None)
        if name and record.get("Nodes"):
            found[name] = record["Nodes"]
    return found


class QueueReader:
    """Of `squeue -o QUEUE_FORMAT`, again and again: what Slurm knows of a home's attempts, each by its id. A line that was there
    at the last reading is not taken apart again: of ten thousand jobs hardly any has moved since then."""

    def __init__(self, tag: str) -> None:
        self._prefix = f"steelyard:{tag}:"
        self._text = ""
        self._lines: dict[str, tuple[tuple[str, QueueEntry], ...]] = {}
        self._found: dict[str, QueueEntry] = {}

    def read(self, text: str) -> Mapping[str, QueueEntry]:
        """Of several jobs for one attempt the first to run counts: the others end as soon as they see it."""
        if text == self._text:
            return self._found
        mark = f"|{self._prefix}"
        lines: dict[str, tuple[tuple[str, QueueEntry], ...]] = {}
        found: dict[str, QueueEntry] = {}
        for line in text.splitlines():
            if mark not in line:
                continue
            entries = lines[line] = self._lines.get(line) or tuple(read_line(line, self._prefix))
            for attempt, entry in entries:
                known = found.get(attempt)
                if known is None or (known.state == "PENDING" and entry.state != "PENDING"):
                    found[attempt] = entry
        self._text, self._lines, self._found = text, lines, found
        return found


def read_line(line: str, prefix: str) -> Iterator[tuple[str, QueueEntry]]:
    """Attempts of one line: of an array that waits, all that do."""
    fields = line.split("|", 6)
    if len(fields) < 7 or not fields[6].startswith(prefix):
        return
    name, state, reason, begun, nodes, end, comment = fields
    started, ends = (int(each) * 1_000_000 if each.isdigit() else None for each in (begun, end))
    for attempt, number in list_attempts(comment[len(prefix) :].rstrip(), name):
        if attempt:
            yield attempt, QueueEntry(number, state, "" if reason in _NOTHING else reason, started, nodes, ends)


def read_exit_code(record: dict[str, str]) -> tuple[int | None, int | None]:
    """(code, signal) of `scontrol show job`: what Slurm itself saw of the batch script."""
    code, _, number = record.get("ExitCode", "").partition(":")
    if not code.isdigit() or not number.isdigit():
        return None, None
    return (None, int(number)) if int(number) else (int(code), None)


def read_complaint(text: str) -> str:
    """What a command of Slurm's had to say when it failed, in its own words and one line: the last thing is why."""
    lines = [re.sub(r"^(s\w+|scontrol): ((error|fatal): )?", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(reversed(lines[-3:])))


def _word(record: dict[str, str], name: str) -> str:
    value = record.get(name, "")
    return "" if value in _NOTHING else value
