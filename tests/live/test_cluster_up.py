"""From bare machines to a Slurm cluster by one command, on machines of namespaces with an sshd each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_command import Cluster
from slurm_bed import USER, machines, wait_until

CONF = "/etc/slurm/slurm.conf"
#: in the place of a program: ends the connection that it was started over, once
CUT = """#!/bin/sh
mv /usr/bin/setpriv.kept /usr/bin/setpriv
# newer ones call it sshd-session
pkill -KILL -f '^sshd[^ ]*: root'
exit 1
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with machines(["n1", "n2", "n3"]) as bed:
        yield Cluster(bed, tmp_path)


def test_three_bare_machines_become_a_cluster_and_a_second_time_nothing_is_to_do(cluster: Cluster) -> None:
    hosts = cluster.write_hosts("n1", "n2", "n3")
    refused = cluster.run("up", hosts)
    assert refused.returncode == 2 and "say -y" in refused.stderr and "slurm.conf" in refused.stdout
    planned = cluster.run("up", hosts, "--json")
    assert planned.returncode == 2 and {step["host"] for step in json.loads(planned.stdout)["steps"]} == {"n1", "n2", "n3"}
    assert not cluster.bed["n1"].path(CONF).exists()
    nothing = cluster.run("status")
    assert nothing.returncode == 2 and "none was brought up from here" in nothing.stderr

    assert "3 nodes take work" in cluster.ok("up", hosts, "-y")
    assert sorted(cluster.bed["n1"].ok("srun", "-N3", "hostname").split()) == ["n1", "n2", "n3"]
    again = json.loads(cluster.ok("up", hosts, "-y", "--json"))
    assert again["steps"] == [] and again["nodes"] == ["n1", "n2", "n3"]
    assert cluster.run("config", "--diff").stderr == "No file differs.\n"
    shown = json.loads(cluster.ok("status", "--json"))
    assert shown["attachment"] is None and [node["state"] for node in shown["cluster"]["nodes"]] == ["IDLE"] * 3
    assert "is not attached" in cluster.ok("status")

    # an edited file keeps its host out, and the host its place
    with cluster.bed["n3"].path(CONF).open("a") as file:
        file.write("# mine\n")
    edited = cluster.run("up", hosts, "-y")
    assert edited.returncode == 1 and "n3 stays out: /etc/slurm/slurm.conf was edited" in edited.stderr
    assert cluster.bed["n3"].path(CONF).read_text().endswith("# mine\n") and cluster.state("n3").startswith("idle")


def test_a_machine_with_something_critical_starts_no_job_until_it_is_resumed(cluster: Cluster) -> None:
    cluster.ok("up", cluster.write_hosts("n1", "n2"), "-y")
    verdict = cluster.bed["n2"].path("/run/steelyard-node/critical")
    verdict.parent.mkdir(exist_ok=True)
    verdict.write_text("xid: The GPU fell off the bus.")
    head = cluster.bed["n1"]
    job = head.ok("sbatch", "--parsable", "--chdir=/tmp", "-w", "n2", "--wrap", "touch /tmp/ran").strip()
    # the job is queued again, and held
    wait_until(lambda: head.ok("squeue", "-h", "-o", "%i %T") == f"{job} PENDING\n", "the prolog to refuse the job")
    wait_until(lambda: cluster.state("n2") == "drained Prolog error", "n2 to be drained")
    assert not cluster.bed["n2"].path("/tmp/ran").exists()
    cluster.ok("resume", "n2")
    assert not verdict.exists()
    assert head.ok("srun", "-w", "n2", "hostname") == "n2\n"
    cluster.ok("drain", "n2", "--reason", "new memory")
    assert cluster.state("n2") == "drained new memory"


def test_a_connection_that_is_lost_in_the_middle_costs_one_more_run(cluster: Cluster) -> None:
    broken = cluster.bed["n2"].path("/usr/bin/setpriv")
    broken.rename(broken.with_name("setpriv.kept"))
    broken.write_text(CUT)
    broken.chmod(0o755)
    hosts = cluster.write_hosts("n1", "n2", "n3")
    cut = cluster.run("up", hosts, "-y")
    assert cut.returncode == 1 and "n2 was not finished: the connection to n2 was lost" in cut.stderr
    assert cluster.state("n3").startswith("idle")
    # what was done before the cut is not done again
    steps = json.loads(cluster.ok("up", hosts, "-y", "--json"))["steps"]
    assert [(step["host"], step["what"]) for step in steps] == [("n2", "munged"), ("n2", "slurmd")]
    assert sorted(cluster.bed["n1"].ok("srun", "-N3", "hostname").split()) == ["n1", "n2", "n3"]


def test_hosts_that_cannot_take_part_stay_as_they_are_and_the_others_go_on(cluster: Cluster) -> None:
    theirs = cluster.bed["n2"].path(CONF)
    theirs.write_text("ClusterName=theirs\n")
    hosts = cluster.write_hosts("n1", "n2", "n3")
    # where nobody listens
    Path(hosts).write_text(Path(hosts).read_text().replace("{name: n3,", "{name: n3, port: 1,"))
    done = cluster.run("up", hosts, "-y")
    assert done.returncode == 1
    assert "n2 stays out: /etc/slurm/slurm.conf was not written by `cluster up`" in done.stderr
    assert "n3 stays out: it can't be reached" in done.stderr
    assert theirs.read_text() == "ClusterName=theirs\n" and not cluster.bed["n2"].path("/etc/slurm/gres.conf").exists()
    assert cluster.bed["n1"].ok("srun", "hostname") == "n1\n"
    # the controller itself: nothing is done at all
    Path(hosts).write_text(Path(hosts).read_text().replace("user: root", f"user: {USER}"))
    nobody = cluster.run("up", hosts, "-y")
    assert nobody.returncode == 2 and "can't become root without a password" in nobody.stderr


def test_what_is_wrong_with_a_host_is_said_and_keeps_it_alone_out(cluster: Cluster) -> None:
    late = cluster.bed["n2"].path("/usr/local/bin/date")
    late.write_text('#!/bin/sh\nexec /bin/date -d "-400 seconds" "$@"\n')
    late.chmod(0o755)
    release = cluster.bed["n3"].path("/usr/lib/os-release")
    debian = release.read_text()
    release.unlink()
    release.write_text('ID=rocky\nVERSION_ID="9.4"\n')
    hosts = cluster.write_hosts("n1", "n2", "n3")
    done = cluster.run("up", hosts, "-y")
    assert done.returncode == 1 and "s behind the controller's, too far for munge's credentials" in done.stderr
    assert "n3 stays out: its distribution (rocky 9.4) is not one whose packages are known here" in done.stderr
    assert not cluster.bed["n2"].path(CONF).exists() and not cluster.bed["n3"].path(CONF).exists()
    late.unlink()
    release.write_text(debian)
    text = Path(hosts).read_text()
    Path(hosts).write_text(
        text.replace("{name: n2,", f"{{name: n2, user: {USER},").replace("{name: n3,", "{name: n3, user: stranger,")
    )
    done = cluster.run("up", hosts, "-y", "--json")
    left_out = json.loads(done.stdout)["left_out"]
    assert done.returncode == 1 and "sudo -n is refused" in left_out["n2"]
    assert left_out["n3"] == f"it lets nobody in with the keys that are here (ssh-copy-id stranger@{cluster.bed['n3'].address})"
    Path(hosts).write_text(text)
    assert "3 nodes take work" in cluster.ok("up", hosts, "-y")


def test_machines_come_and_go_by_a_user_with_sudo(cluster: Cluster) -> None:
    for machine in cluster.bed:
        machine.path("/etc/sudoers.d/cluster").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    site = cluster.folder / "site.conf"
    site.write_text("SwitchName=leaf1 Nodes=n1,n2\nSwitchName=leaf2 Nodes=n3,n4\nSwitchName=spine Switches=leaf1,leaf2\n")
    cluster.ok("up", cluster.write_hosts("n1", "n2", user=USER), "-y", f"--fabric={site}")
    head = cluster.bed["n1"]
    config = cluster.folder / "ssh_config"
    config.write_text(f"Host n3\nHostname {cluster.bed['n3'].address}\n\n{config.read_text()}")
    job = head.ok("sbatch", "--parsable", "--chdir=/tmp", "-w", "n2", "--wrap", "exec sleep 600").strip()
    wait_until(lambda: head.ok("squeue", "-h", "-o", "%T") == "RUNNING\n", "the job to run")
    assert "3 nodes take work" in cluster.ok("add", "n3", "-y")
    assert cluster.run("add", "n3", "-y").returncode == 2
    # the wiring that was named before still holds
    assert "SwitchName=spine-spine Level=1 LinkSpeed=1 Nodes=n[1-3]" in head.ok("scontrol", "show", "topology")
    # what runs goes on under restarted programs
    assert head.ok("squeue", "-h", "-o", "%i %T") == f"{job} RUNNING\n"
    busy = cluster.run("remove", "n2", "-y")
    assert busy.returncode == 2 and f"Jobs run on n2 ({job})" in busy.stderr
    assert cluster.run("remove", "n1", "-y").returncode == 2
    head.ok("scancel", job)
    wait_until(lambda: not head.ok("squeue", "-h"), "the job to end")
    cluster.ok("remove", "n2", "-y")
    assert head.ok("sinfo", "-h", "-N", "-o", "%N").split() == ["n1", "n3"]
    assert cluster.bed["n2"].run("pgrep", "-x", "slurmd").returncode == 1
    assert not cluster.bed["n2"].path(CONF).exists()
