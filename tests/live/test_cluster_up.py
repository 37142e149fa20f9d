"""From bare machines to a Slurm cluster by one command, on machines of namespaces with an sshd each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_bed import Bed, machines


class Cluster:
    """The command line against the machines of one bed, with a home and known hosts of its own."""

    def __init__(self, bed: Bed, folder: Path) -> None:
        self.bed, self.folder = bed, folder
        known = [f"{each.address} {each.path('/etc/ssh/ssh_host_ed25519_key.pub').read_text().strip()}" for each in bed]
        (folder / "known_hosts").write_text("\n".join([*known, ""]))
        (folder / "ssh_config").write_text(
            f"Host *\nUser root\nIdentityFile {bed.key}\nUserKnownHostsFile {folder}/known_hosts\n"
        )

    def write_hosts(self, *names: str, top: str = "") -> Path:
        hosts = [f"- {{name: {name}, address: {self.bed[name].address}}}" for name in names]
        file = self.folder / "hosts.yaml"
        file.write_text("\n".join([top, "hosts:", *hosts, ""]))
        return file

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "steelyard", "cluster", *words, f"--home={self.folder}/home"]
        more = [f"--ssh-config={self.folder}/ssh_config"]
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100, check=False
        )

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"{words} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with machines(["n1", "n2", "n3"]) as bed:
        yield Cluster(bed, tmp_path)


def test_three_bare_machines_become_a_cluster_and_a_second_time_nothing_is_to_do(cluster: Cluster) -> None:
    hosts = str(cluster.write_hosts("n1", "n2", "n3"))
    refused = cluster.run("up", hosts)
    assert refused.returncode == 2 and "say -y" in refused.stderr and "slurm.conf" in refused.stdout
    assert not cluster.bed["n1"].path("/etc/slurm/slurm.conf").exists()

    assert "3 nodes take work" in cluster.ok("up", hosts, "-y")
    assert sorted(cluster.bed["n1"].ok("srun", "-N3", "hostname").split()) == ["n1", "n2", "n3"]
    again = json.loads(cluster.ok("up", hosts, "-y", "--json"))
    assert again["steps"] == [] and again["nodes"] == ["n1", "n2", "n3"]
    assert cluster.run("config", "--diff").stderr == "No file differs.\n"
