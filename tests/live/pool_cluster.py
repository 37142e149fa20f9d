"""A Steelyard whose pools have their machines from a Slurm of tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from direct_cluster import Direct
from steelyard_cluster import free_ports, wait_until
from traces import observe_traces

from slurm_bed import slurm

#: Slurm holds agent, spawner and gateway too
NODE = ("--cpus-per-node", "1", "--memory-per-node", "700MiB")


class PoolCluster(Direct):
    cluster_port: int

    def up(self, *more: str) -> None:
        super().up("--cluster-address", f"{self.bed.network}.1:{self.cluster_port}", *more)

    def create(self, name: str, *words: str) -> None:
        self.ok("pool", "create", name, *NODE, *words)

    def pilots(self, pool: str) -> list[dict[str, Any]]:
        return self.api("GET", f"/v1/pools/{pool}").json()["pilots"]

    def complaint(self, pool: str) -> str:
        return self.api("GET", f"/v1/pools/{pool}").json()["pool"]["complaint"]

    def wait_pilot(self, pool: str, state: str, timeout: float = 60.0) -> dict[str, Any]:
        """One of the pool that is in that state, and whose number in Slurm's queue is known: its agent may be heard before."""

        def look() -> dict[str, Any] | None:
            return next((each for each in self.pilots(pool) if each["state"] == state and each["slurm_job"]), None)

        return wait_until(look, timeout, f"a pilot of {pool} to be {state}")

    def delete(self, pool: str) -> None:
        """Until Slurm has everything back."""
        self.ok("pool", "delete", pool)
        wait_until(lambda: self.api("GET", f"/v1/pools/{pool}").status == 404, 60, f"{pool} to be gone")

    def print_logs(self, lines: int = 40) -> None:
        super().print_logs(lines)
        for file in sorted((self.home / "slurm").rglob("log")):
            print(f"--- {file.parent.name}\n{file.read_text(errors='replace')[-3000:]}")


class RootPoolCluster(PoolCluster):
    """Of a Steelyard that root runs."""

    as_user = ()


@contextlib.contextmanager
def pooled(nodes: int = 2, kind: type[PoolCluster] = PoolCluster) -> Iterator[PoolCluster]:
    """With a Slurm of its own. Nothing is left on this machine when it is done."""
    with slurm(nodes=nodes) as bed:
        before = observe_traces()
        folder = bed.shared / "pools"
        folder.mkdir()
        made = kind(folder)
        made.bed = bed
        (made.cluster_port,) = free_ports(1)
        try:
            made.up()
            made.ok("cluster", "attach")
            yield made
        except BaseException:
            made.print_logs()
            raise
        finally:
            made.down()
        assert not (left := observe_traces().settled_minus(before)), f"left behind:\n{left}"
