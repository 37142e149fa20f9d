"""A Steelyard that is attached to a Slurm of tests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from steelyard_cluster import UserCluster

from slurm_bed import SlurmBed


class Direct(UserCluster):
    """An ordinary user's Steelyard, in the folder that all machines share."""

    bed: SlurmBed

    def environ(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return super().environ({**self.bed.led, **(more or {})})

    def run(self, *words: str) -> tuple[int, str, str]:
        return self.tell("run", "--direct", *words)

    def tell(self, *words: str) -> tuple[int, str, str]:
        done = self.cli(*words)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def begin(self, *words: str) -> str:
        return self.ok("run", "--direct", "--detach", *words).strip()

    def newest(self) -> str:
        return json.loads(self.ok("ps", "--json"))[-1]["id"]

    def proof(self, job: str) -> dict[str, Any]:
        return json.loads(self.ok("proof", job, "--json"))

    def entries(self, job: str, behind: str = ".") -> list[list[str]]:
        """What Slurm has of that job, of whatever attempt: (number, state). Of an array's, "_" is `behind` its id."""
        listed = self.bed.ok("squeue", "-h", "-r", "-t", "all", "-o", "%i %T %k").splitlines()
        return [line.split()[:2] for line in listed if f":{job}{behind}" in line]


@contextlib.contextmanager
def attached(bed: SlurmBed) -> Iterator[Direct]:
    folder = bed.shared / "direct"
    folder.mkdir()
    made = Direct(folder)
    made.bed = bed
    try:
        made.up()
        made.ok("cluster", "attach")
        yield made
    finally:
        made.print_logs()
        made.down()
