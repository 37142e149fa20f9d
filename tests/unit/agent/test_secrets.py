"""What the agent holds of secrets: fetched until it is there, given to nobody else's work, said of nobody."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from steelyard.agent.secrets import WITHHELD, SecretKeeper, WorkSecrets
from steelyard.errors import EdgeFailed, StoreDamaged, Unreachable
from steelyard.model.job import Owner
from steelyard.model.secret import SecretUse
from steelyard.wire.agent import SecretVersion

ANN = Owner("ann", 1000)
DB = SecretVersion("ann", "db", "1")
USES = (SecretUse("db"), SecretUse("tls", as_files=True))


class Server:
    """Answers with what it has, as a thread asks; `away` while it has no answer."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, Mapping[str, str]]] = {"db": ("1", {"PASSWORD": "hunter22"})}
        self.fault: Exception | None = None
        self.asked = threading.Event()

    def fetch(self, wanted: SecretVersion) -> tuple[str, Mapping[str, str]]:
        self.asked.set()
        if self.fault is not None:
            raise self.fault
        return self.rows[wanted.name]


class Bench:
    def __init__(self, folder: Path) -> None:
        self.server, self.changes = Server(), 0
        self.keeper = SecretKeeper(cast(Any, SimpleNamespace(secrets=folder)), cast(Any, None), self.note, self.server.fetch)

    def note(self) -> None:
        self.changes += 1

    def of(self, *uses: SecretUse, owner: Owner = ANN) -> WorkSecrets:
        return WorkSecrets(self.keeper, owner, uses, "j-1.1", None)


def run(folder: Path, test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test(Bench(folder))

    asyncio.run(bounded())


def test_values_are_given_as_soon_as_they_are_here_and_stay_while_the_server_is_away(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.server.fault = Unreachable("away")
        bench.keeper.reconcile([DB])
        waiting = asyncio.ensure_future(bench.of(USES[0]).variables())
        assert await asyncio.to_thread(bench.server.asked.wait, 5)
        assert not waiting.done()
        assert "It waits for the secret db" in bench.of(USES[0]).explain_wait()
        bench.server.fault = None
        assert await waiting == {"PASSWORD": "hunter22", "STEELYARD_SECRET_KEYS": "db.PASSWORD"}
        assert bench.of(USES[0]).explain_wait() == ""
        bench.server.fault = Unreachable("away")
        assert (await bench.of(USES[0]).variables())["PASSWORD"] == "hunter22"

    run(tmp_path, test)


def test_what_is_replaced_is_another_version_and_both_values_are_hidden(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.keeper.reconcile([DB])
        await bench.of(USES[0]).variables()
        before, changes = bench.of(USES[0]).version, bench.changes
        bench.server.rows["db"] = ("2", {"PASSWORD": "staple33"})
        bench.keeper.reconcile([SecretVersion("ann", "db", "2")])
        assert (await bench.of(USES[0]).variables())["PASSWORD"] == "staple33"
        assert bench.of(USES[0]).version != before and bench.changes > changes
        assert bench.of(USES[0]).clean("hunter22 staple33") == "[secret db.PASSWORD] [secret db.PASSWORD]"
        assert bench.of().version == "" and bench.of().clean("hunter22") == "hunter22"

    run(tmp_path, test)


def test_a_secret_that_is_gone_or_cannot_be_read_fails_the_start_with_the_reason(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for work in (bench.of(USES[0]), bench.of(USES[0], owner=Owner("bob", 1001))):
            with pytest.raises(EdgeFailed, match=r"secret db is gone. Create it again"):
                await work.variables()
        bench.server.fault = StoreDamaged("The key file is gone")
        bench.keeper.reconcile([DB])
        with pytest.raises(EdgeFailed, match="The key file is gone"):
            await bench.of(USES[0]).variables()
        with pytest.raises(EdgeFailed, match=r"is gone\. Create"):
            await bench.of(USES[0], owner=Owner("bob", 1001)).variables()
        bench.server.fault = None
        while bench.of(USES[0]).explain_wait():
            await asyncio.sleep(0.01)
        assert (await bench.of(USES[0]).variables())["PASSWORD"] == "hunter22"

    run(tmp_path, test)


def test_while_values_are_not_known_nothing_that_may_hold_them_is_told(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.server.fault = Unreachable("away")
        bench.keeper.reconcile([DB])
        assert bench.of(USES[0]).clean("no login with hunter22") == WITHHELD
        assert bench.of(USES[0]).clean("") == ""

    run(tmp_path, test)


def test_files_are_the_works_alone_replaced_in_place_and_swept(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.server.rows["tls"] = ("1", {"CERT": "abc\n", "OLD": "x"})
        wanted = [DB, SecretVersion("ann", "tls", "1")]
        bench.keeper.reconcile(wanted)
        given = await bench.of(*USES).variables()
        folder = Path(given["STEELYARD_SECRETS"])
        assert folder == tmp_path / "j-1.1" and given["PASSWORD"] == "hunter22" and "CERT" not in given
        assert sorted(os.listdir(folder)) == ["tls"], "those that are variables are no files"
        cert = folder / "tls" / "CERT"
        assert (cert.read_text(), stat.S_IMODE(cert.stat().st_mode)) == ("abc\n", 0o400)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        bench.server.rows["tls"] = ("2", {"CERT": "newer"})
        bench.keeper.reconcile([DB, SecretVersion("ann", "tls", "2")])
        await bench.of(*USES).variables()
        assert (cert.read_text(), os.listdir(folder / "tls")) == ("newer", ["CERT"])
        bench.keeper.sweep(lambda: {"j-1.1"})
        assert folder.exists()
        bench.keeper.sweep(set)
        assert not folder.exists()

    run(tmp_path, test)


def test_a_restarted_agent_sweeps_what_an_earlier_one_left(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        (tmp_path / "j-7.1" / "tls").mkdir(parents=True)
        (tmp_path / "fn.f.1").mkdir()
        bench.keeper.adopt([])
        bench.keeper.sweep(lambda: {"fn.f.1"})
        assert os.listdir(tmp_path) == ["fn.f.1"]

    run(tmp_path, test)
