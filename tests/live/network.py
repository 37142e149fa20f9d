"""A second machine, as far as the network knows: a network of its own with one address, on a link to this one. The files are the
same, and so a Unix socket there is one here. Needs root and `ip`, and says so without."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

_number = itertools.count()


@dataclass(frozen=True)
class Elsewhere:
    #: this machine's address on the link, and that one's
    here: str
    address: str
    #: a process that holds the network
    pid: int

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` there."""
        return ["nsenter", f"--target={self.pid}", "--net", *words]

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing is heard from there, nor there, and nobody is told so."""
        rules = "table inet cut { chain in { type filter hook input priority 0; policy drop; }; }"
        subprocess.run(self.command("nft", rules), check=True)
        subprocess.run(
            self.command("nft", "add chain inet cut out { type filter hook output priority 0; policy drop; }"), check=True
        )
        try:
            yield
        finally:
            subprocess.run(self.command("nft", "delete table inet cut"), check=True)


@contextlib.contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("NO SECOND NETWORK HERE: needs root and `ip` (Debian's iproute2)")
    number = (os.getpid() * 8 + next(_number) % 8) % (1 << 14)
    network = f"10.{192 + number // 256}.{number % 256}"
    link = f"sye{number}"
    # the end of whoever tests ends it, and the network with it
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo made; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"made\n"
        there = Elsewhere(f"{network}.1", f"{network}.2", holder.pid)
        for words in (
            ["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid)],
            ["ip", "addr", "add", f"{there.here}/30", "dev", link],
            ["ip", "link", "set", link, "up"],
            there.command("ip", "addr", "add", f"{there.address}/30", "dev", "eth0"),
            there.command("ip", "link", "set", "eth0", "up"),
            there.command("ip", "link", "set", "lo", "up"),
        ):
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        yield there
    finally:
        holder.kill()
        holder.communicate()
        # the other end is gone with its network, a moment later
        subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
