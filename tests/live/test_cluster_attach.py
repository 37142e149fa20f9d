"""`cluster attach` on a real Slurm, as root and as an ordinary user, and what it says where something is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, UserCluster

from slurm_bed import USER, SlurmBed, render_conf, slurm, wait_until
from steelyard.engine.slurm import client
from steelyard.errors import EdgeFailed
from steelyard.model.slurm import Attachment, parse_version


@pytest.fixture(scope="module")
def bed() -> Iterator[SlurmBed]:
    with slurm() as made:
        yield made


class Attaching:
    """A home that was up once: to attach, nothing has to run."""

    def __init__(self, bed: SlurmBed, kind: type[Cluster]) -> None:
        self.bed, self.folder = bed, bed.shared / kind.__name__
        self.folder.mkdir()
        self.cluster = kind(self.folder)
        self.cluster.up()
        self.cluster.down()

    def cli(self, *words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        done = self.cluster.cli("cluster", *words, env={**self.bed.led, **(env or {})})
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def json(self, *words: str, env: dict[str, str] | None = None) -> Any:
        code, out, err = self.cli(*words, "--json", env=env)
        assert code == 0, err
        return json.loads(out)


@pytest.fixture(scope="module")
def roots(bed: SlurmBed) -> Attaching:
    return Attaching(bed, Cluster)


@pytest.fixture(scope="module")
def mine(bed: SlurmBed) -> Attaching:
    """Of an ordinary user."""
    return Attaching(bed, UserCluster)


def test_an_ordinary_user_attaches_and_sees_the_cluster(bed: SlurmBed, mine: Attaching) -> None:
    assert mine.cli("status")[0] == 2
    found = mine.json("attach", "--partition", "main")
    seen = found["cluster"]
    assert (seen["name"], seen["controller"], seen["version"]) == ("bed", "head", bed.ok("sinfo", "--version").split()[1])
    # the one of root's alone is not shown to others
    assert [part["name"] for part in seen["partitions"]] == ["main"]
    assert [(node["name"], node["cpus"], node["memory_bytes"]) for node in seen["nodes"]] == [
        (f"n{number}", os.cpu_count(), 1 << 30) for number in (1, 2, 3)
    ]
    assert seen["settings"]["SelectType"] == "select/cons_tres"
    assert found["attachment"]["folder"] == str(mine.cluster.home / "slurm")
    # what leads to this cluster is kept, for whoever has no such variable
    status = mine.cluster.cli("cluster", "status", env={"PATH": bed.led["PATH"]})
    assert status.stdout.decode().startswith(f"bed: Slurm {seen['version']} on head\n")
    code, _, err = mine.cli("attach", "--partition", "closed")
    # by Slurm's words, or where it would take jobs that never begin
    refused = "Slurm says: allocation failure: User's group not permitted", "closed is not for this user (AllowGroups=root)"
    assert code == 2 and any(words in err for words in refused), err
    # and what was attached before stays
    assert mine.json("status")["attachment"]["partition"] == "main"
    assert mine.cli("detach")[0] == 0 and mine.cli("status")[0] == 2


@pytest.fixture(scope="module")
def by_ssh(bed: SlurmBed, roots: Attaching) -> dict[str, str]:
    """An environment that knows nothing of Slurm, whose ssh opens the machines."""
    ssh = roots.folder / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {" ".join(bed.ssh_command[1:])} "$@"\n')
    ssh.chmod(0o755)
    return {"PATH": f"{roots.folder}:{os.environ['PATH']}", "SLURM_CONF": ""}


def test_a_login_host_is_asked_by_ssh(bed: SlurmBed, roots: Attaching, by_ssh: dict[str, str]) -> None:
    found = roots.json("attach", "--ssh", f"{USER}@{bed['n2'].address}", env=by_ssh)
    assert [part["name"] for part in found["cluster"]["partitions"]] == ["main"]
    assert found["attachment"]["folder"] == f"{bed.shared}/{USER}/.local/share/steelyard/slurm"
    code, _, err = roots.cli("attach", "--ssh", f"{bed.network}.99", env=by_ssh)
    assert (code, f"{bed.network}.99 is not reached by ssh" in err) == (3, True)


def test_a_job_goes_through_a_login_host(bed: SlurmBed, roots: Attaching, by_ssh: dict[str, str]) -> None:
    roots.json("attach", "--ssh", f"{USER}@{bed['n2'].address}", env=by_ssh)
    assert roots.cluster.cli("up", "--detach", env=by_ssh).returncode == 0
    try:
        script = "hostname; id -un; echo $SLURM_JOB_ID ${SSH_CLIENT-unset} ${STEELYARD_HOME-unset}; exit 3"
        done = roots.cluster.cli("run", "--direct", "--", "sh", "-c", script, env=by_ssh, cwd=Path("/"))
        host, user, told = done.stdout.decode().splitlines()
        assert (done.returncode, host in ("n1", "n2", "n3"), user) == (3, True, USER)
        # of the login's environment it is told nothing, and of ours nothing
        assert told.split()[0].isdigit() and told.split()[1:] == ["unset", "unset"]
    finally:
        roots.cluster.down()


@pytest.mark.parametrize("then", ["wait", "exit"])
def test_a_command_that_never_answers_is_ended_with_all_it_began(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    monkeypatch.setattr(client, "ANSWER_S", 0.3)
    slurm_client = client.SlurmClient(Attachment(), os.environ)
    with pytest.raises(EdgeFailed, match="did not answer"):
        # what it began holds its output too, and is waited for
        asyncio.run(slurm_client.ask("sh", "-c", f"sleep 1000 & {then}"))


def test_a_drained_node_is_shown_with_its_reason(bed: SlurmBed, roots: Attaching) -> None:
    bed.ok("scontrol", "update", "node=n3", "state=drain", "reason=bad fan")
    try:
        nodes = roots.json("attach")["cluster"]["nodes"]
        assert [(node["state"], node["reason"].partition(" [")[0]) for node in nodes][2] == ("IDLE+DRAIN", "bad fan")
        assert "bad fan" in roots.cli("status")[1]
    finally:
        bed.ok("scontrol", "update", "node=n3", "state=resume")


@pytest.mark.parametrize(("version", "code"), [("21.08.8", 2), ("27.05.1", 0), ("soon", 2)])
def test_a_version_outside_the_range_is_told(bed: SlurmBed, roots: Attaching, version: str, code: int) -> None:
    """What an older one would mean is refused; a newer one is used, with a note."""
    place = roots.folder / version
    place.mkdir()
    tells = place / "scontrol"
    real = shutil.which("scontrol", path=bed.led["PATH"])
    tells.write_text(f'#!/bin/sh\n{real} "$@" | sed "s/^SLURM_VERSION .*/SLURM_VERSION = {version}/"\n')
    tells.chmod(0o755)
    before = roots.json("attach")["attachment"]
    ended, out, err = roots.cli("attach", env={"PATH": f"{place}:{bed.led['PATH']}"})
    assert (ended, version in out + err) == (code, True), err
    assert roots.json("status")["attachment"] == before


def test_a_partition_whose_jobs_would_never_begin_is_refused_and_a_hidden_one_is_not(bed: SlurmBed, mine: Attaching) -> None:
    """As of Slurm 24.11, which takes jobs for it."""
    place = mine.folder / "takes-all"
    place.mkdir()
    (place / "sbatch").symlink_to("/bin/true")
    env = {"PATH": f"{place}:{bed.led['PATH']}"}
    code, _, err = mine.cli("attach", "--partition", "main,closed", env=env)
    assert (code, "Partition closed is not for this user (AllowGroups=root)" in err) == (2, True), err
    bed.ok("scontrol", "update", "PartitionName=main", "Hidden=YES")
    try:
        assert mine.json("attach", "--partition", "main", env=env)["cluster"]["partitions"] == []
    finally:
        bed.ok("scontrol", "update", "PartitionName=main", "Hidden=NO")
    assert mine.cli("detach")[0] == 0


def test_an_account_that_slurm_refuses_is_told_in_its_words(bed: SlurmBed, mine: Attaching) -> None:
    if parse_version(bed.ok("sinfo", "--version").split()[1]) > (22, 5):
        pytest.skip("NOT TRIED HERE: newer ones ask slurmdbd who may use an account")
    conf = render_conf(bed.machines)
    taught = "PartitionName=taught Nodes=n1 AllowAccounts=physics MaxTime=60 DefMemPerCPU=100"
    bed.write_conf(f"{conf}EnforcePartLimits=ALL\n{taught}\n")
    bed.ok("scontrol", "reconfigure")
    try:
        found = mine.json("attach")["attachment"]
        code, _, err = mine.cli("attach", "--partition", "taught", "--account", "chemistry")
        assert (code, "Slurm says: allocation failure: Invalid account or account/partition" in err) == (2, True), err
        assert mine.json("status")["attachment"] == found
        assert mine.cli("detach")[0] == 0
    finally:
        bed.write_conf(conf)
        bed.ok("scontrol", "reconfigure")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--partition", "nope"), "Slurm says: allocation failure: Invalid partition name specified"),
        (("--ssh", "-oProxyCommand=false"), "is no host"),
        (("--folder", "/proc/here"), "/proc/here can't be made"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(roots: Attaching, words: tuple[str, ...], text: str) -> None:
    before = roots.json("attach")["attachment"]
    code, _, err = roots.cli("attach", *words)
    assert (code, text in err) == (2, True), err
    assert roots.json("status")["attachment"] == before


def test_what_is_wrong_with_slurm_is_told_apart(bed: SlurmBed, roots: Attaching) -> None:
    empty = roots.folder / "empty"
    empty.mkdir()
    (empty / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    code, _, err = roots.cli("attach", env={"PATH": str(empty)})
    assert (code, "There is no scontrol on this machine" in err) == (2, True), err
    conf = bed.folder / "silent.conf"
    conf.write_text((bed.folder / "slurm.conf").read_text().replace(f"{bed.munge}/socket", "/nowhere"))
    code, _, err = roots.cli("attach", env={"SLURM_CONF": str(conf)})
    assert (code, "munge on this machine does not sign" in err) == (2, True), err
    place = bed.folder / "other"
    place.mkdir(mode=0o755)
    (place / "key").write_bytes(os.urandom(1024))
    (place / "key").chmod(0o600)
    files = (f"--{word}={place}/{word}" for word in ("socket", "pid-file", "log-file", "seed-file"))
    command = ["munged", "--foreground", *files, f"--key-file={place}/key"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as munged:
        try:
            wait_until(lambda: (place / "socket").exists(), "the other munge's socket")
            conf.write_text((bed.folder / "slurm.conf").read_text().replace(f"{bed.munge}/socket", f"{place}/socket"))
            code, _, err = roots.cli("attach", env={"SLURM_CONF": str(conf)})
            assert (code, "munge's key on this machine is not the cluster's" in err) == (3, True), err
        finally:
            munged.terminate()
    other = bed.folder / "away.conf"
    other.write_text((bed.folder / "slurm.conf").read_text() + "SlurmctldPort=6999\nMessageTimeout=2\n")
    code, _, err = roots.cli("attach", env={"SLURM_CONF": str(other)})
    assert (code, "slurmctld does not answer" in err) == (3, True), err
