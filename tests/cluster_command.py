"""`steelyard cluster` against the machines of a bed, for tests and for the bench."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from slurm_bed import Bed


class Cluster:
    """The command line against the machines of one bed, with a home and known hosts of its own."""

    def __init__(self, bed: Bed, folder: Path) -> None:
        self.bed, self.folder = bed, folder
        known = [f"{each.address} {each.path('/etc/ssh/ssh_host_ed25519_key.pub').read_text().strip()}" for each in bed]
        (folder / "known_hosts").write_text("\n".join([*known, ""]))
        (folder / "ssh_config").write_text(f"Host *\nIdentityFile {bed.key}\nUserKnownHostsFile {folder}/known_hosts\n")

    def write_hosts(self, *names: str, user: str = "root") -> str:
        hosts = [f"- {{name: {name}, address: {self.bed[name].address}}}" for name in names]
        file = self.folder / "hosts.yaml"
        file.write_text("\n".join([f"user: {user}", "hosts:", *hosts, ""]))
        return str(file)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "steelyard", "cluster", *words, f"--home={self.folder}/home"]
        command.append(f"--ssh-config={self.folder}/ssh_config")
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100, check=False)

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"{words} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def state(self, name: str) -> str:
        return self.bed["n1"].ok("sinfo", "-h", "-n", name, "-o", "%T %E").strip()
