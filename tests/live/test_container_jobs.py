"""Jobs in containers, through the whole platform: what they are, how they end, and what they cannot reach."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries, entry

pytestmark = NEEDS_CONTAINERS
PATHS = {"Env": ["PATH=/bin", "FROM_IMAGE=yes"]}


@pytest.fixture(scope="module")
def image(registry: Registry) -> str:
    return registry.add("busybox:1", OciImage(busybox_entries(), config={**PATHS, "WorkingDir": "/tmp"}))


def run(cluster: Cluster, image: str, script: str, *options: str) -> str:
    """The output of a shell script inside."""
    done = cluster.cli("run", "--cpus", "0.1", "--image", image, *options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def submit(cluster: Cluster, image: str, *argv: str, **fields: Any) -> str:
    spec = {"name": "contained", "argv": argv, "cwd": "", "image": image, "resources": {"cpus": 0.1}, **fields}
    answer = cluster.api("POST", "/v1/jobs", {"spec": spec})
    assert answer.status == 201, answer
    return answer.json()["id"]


def work_uid(cluster: Cluster) -> int:
    return json.loads((cluster.home / "settings.json").read_text())["work_uid"]


def host_pid(cluster: Cluster, job: str, name: str) -> int:
    """Of the process of that name in the job's control group, once there is one."""
    return wait_until(lambda: find_pid(job, name), 5, name)


def find_pid(job: str, name: str) -> int | None:
    for line in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if f"/{job}.1\n" in line.read_text() and (line.parent / "comm").read_text().strip() == name:
                return int(line.parent.name)
        except OSError:
            continue
    return None


# -- what it is


def test_a_job_runs_on_the_files_of_its_image_with_its_variables(shared: Cluster, image: str) -> None:
    out = run(shared, image, 'id -u; pwd; echo "$FROM_IMAGE $MINE $PATH"; ls /', "--env", "MINE=1 2").splitlines()
    assert out[:3] == ["0", "/tmp", "yes 1 2 /bin"]
    assert {"bin", "etc", "proc", "dev"} <= set(out[3:])
    assert "root" not in out[3:], "nothing of the machine's own files"


def test_its_exit_code_is_the_commands(shared: Cluster, image: str) -> None:
    assert shared.cli("run", "--image", image, "--", "sh", "-c", "echo out; echo err >&2; exit 42").returncode == 42


def test_an_image_runs_its_own_command_when_none_is_given(shared: Cluster, registry: Registry) -> None:
    reference = registry.add("hello:1", OciImage(busybox_entries(), config={**PATHS, "Cmd": ["echo", "from the image"]}))
    assert shared.ok("run", "--image", reference) == "from the image\n"


def test_root_inside_is_the_owner_outside_and_others_are_nobody(shared: Cluster, image: str, registry: Registry) -> None:
    job = submit(shared, image, "sleep", "1000")
    shared.wait_job(job, "RUNNING")
    status = Path(f"/proc/{host_pid(shared, job, 'sleep')}/status").read_text()
    assert re.search(rf"^Uid:(\t{work_uid(shared)}){{4}}$", status, re.M)
    shared.ok("stop", job)
    web = registry.add("web:1", OciImage(busybox_entries(), config={**PATHS, "User": "web"}))
    assert run(shared, web, "id -u; id -g; echo $HOME").splitlines() == ["101", "102", "/"]


def test_what_it_writes_is_gone_and_the_image_unchanged(shared: Cluster, image: str) -> None:
    assert run(shared, image, "echo x > /bin/new; rm /etc/passwd; ls /etc/passwd 2>/dev/null; cat /bin/new") == "x\n"
    assert run(shared, image, "ls /bin/new 2>/dev/null; head -c 4 /etc/passwd") == "root"


def test_the_proof_reads_the_walls_back_from_the_kernel(shared: Cluster, image: str) -> None:
    job = submit(shared, image, "sleep", "1000", own_network=True)
    shared.wait_job(job, "RUNNING")

    def matched() -> dict[str, Any] | None:
        seen = shared.api("GET", f"/v1/jobs/{job}/proof").json()
        return seen if seen["state"] == "MATCH" else None

    seen = wait_until(matched, 5, "a proof that matches")
    assert seen["got"]["namespaces"] == ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
    assert (seen["got"]["seccomp"], seen["got"]["capabilities"], seen["got"]["no_new_privs"]) == ("filter", "none", True)
    assert seen["got"]["uid"] == work_uid(shared)
    assert any("crun" in note for note in seen["notes"])
    shared.ok("stop", job)
    shared.wait_job(job, "STOPPED")


def test_limits_of_memory_hold_inside(shared: Cluster, image: str) -> None:
    job = submit(
        shared, image, "sh", "-c", "head -c 300000000 /dev/zero > /dev/shm/x; sleep 100",
        resources={"cpus": 0.1, "memory_bytes": 64 << 20},
    )  # fmt: skip
    ended = shared.wait_job(job, "FAILED")
    assert ended["reason"] in ("oom-killed", "exited-nonzero"), ended
    assert ended["peak_memory_bytes"] <= 64 << 20


# -- how it ends


def test_stop_ends_a_first_process_that_has_no_handler_at_once(shared: Cluster, image: str) -> None:
    job = submit(shared, image, "sleep", "1000")
    shared.wait_job(job, "RUNNING")
    host_pid(shared, job, "sleep")
    shared.ok("stop", "--grace", "60", job)
    ended = shared.wait_job(job, "STOPPED", timeout=10)
    assert ended["reason"] == "stopped-by-user"


def test_a_handler_inside_gets_the_signal(shared: Cluster, image: str) -> None:
    job = submit(shared, image, "sh", "-c", "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done")
    wait_until(lambda: "ready" in shared.ok("logs", job), 10, "it to be ready")
    shared.ok("stop", job)
    assert shared.wait_job(job, "STOPPED")["exit_code"] == 7
    assert "caught" in shared.ok("logs", job)


def test_a_killed_agent_adopts_it_and_reads_its_end(shared: Cluster, image: str) -> None:
    job = submit(shared, image, "sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
    wait_until(lambda: "ready" in shared.ok("logs", job), 10, "it to be ready")
    shared.kill("agent")
    shared.ok("stop", job)
    assert shared.wait_job(job, "STOPPED")["exit_code"] == 3


def test_an_ended_one_leaves_no_bundle_mount_or_note(shared: Cluster, image: str) -> None:
    run(shared, image, "true")
    job = submit(shared, image, "sh", "-c", "sleep 0.2")
    shared.wait_job(job, "SUCCEEDED")
    folder = (Path("/run/steelyard") / shared.tag / "containers").resolve()
    wait_until(lambda: [path.name for path in folder.glob("*")] == [".crun"], 10, "bundles to be forgotten")
    assert not list((folder / ".crun").iterdir())
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()


def test_an_agent_that_is_killed_over_a_fetch_leaves_nothing_and_the_next_fetches(shared: Cluster, registry: Registry) -> None:
    reference = registry.add("killed:1", OciImage(busybox_entries(), [entry("etc/k", os.urandom(1000))], config=PATHS))
    registry.gate.clear()
    registry.asked_blob.clear()
    try:
        job = submit(shared, reference, "cat", "/etc/hello")
        assert registry.asked_blob.wait(20)
        shared.kill("agent")
    finally:
        registry.gate.set()
    assert shared.wait_job(job, "FAILED")["exit_code"] == 1, "it ran, and there is no such file"
    assert not list((shared.home / "images/work").iterdir())


def test_stopping_while_its_image_is_fetched_does_not_wait_for_it(shared: Cluster, registry: Registry) -> None:
    reference = registry.add("slow:1", OciImage(busybox_entries(), [entry("etc/slow", os.urandom(1000))], config=PATHS))
    registry.gate.clear()
    registry.asked_blob.clear()
    try:
        job = submit(shared, reference, "true")
        assert registry.asked_blob.wait(20)
        shared.ok("stop", job)
        shared.wait_job(job, "STOPPED", timeout=10)
    finally:
        registry.gate.set()


def test_exec_runs_inside_behind_the_same_walls(shared: Cluster, image: str) -> None:
    job = submit(shared, image, "sleep", "1000")
    shared.wait_job(job, "RUNNING")
    host_pid(shared, job, "sleep")
    out = shared.ok("exec", job, "--", "sh", "-c", "cat /etc/passwd; grep -E 'Seccomp:|CapBnd|NoNewPrivs' /proc/self/status; ps")
    assert "web:x:101" in out
    assert re.search(r"CapBnd:\t0+\n", out)
    assert re.search(r"Seccomp:\t2\n", out)
    assert "sleep 1000" in out
    assert shared.cli("exec", job, "--", "sh", "-c", "exit 9").returncode == 9
    shared.ok("exec", job, "--", "sh", "-c", "printf '#!/bin/sh\necho made since\n' > /tmp/made; chmod +x /tmp/made")
    assert shared.ok("exec", job, "--", "/tmp/made") == "made since\n"
    missing = shared.cli("exec", job, "--", "no-such-program")
    assert (missing.returncode, "has no program 'no-such-program' in its PATH (/bin)" in missing.stderr.decode()) == (125, True)
    shared.ok("stop", job)


def test_output_files_are_opened_with_the_owners_rights_and_dev_null_stays_roots(shared: Cluster, image: str) -> None:
    out = shared.folder / "out"
    out.mkdir()
    out.chmod(0o777)
    run(shared, image, "echo written", "--output", f"{out}/file")
    assert (out / "file").read_text() == "written\n"
    assert (out / "file").stat().st_uid == work_uid(shared)
    run(shared, image, "echo nothing", "--output", "/dev/null")
    null = os.stat("/dev/null")
    assert (null.st_uid, null.st_mode & 0o777) == (0, 0o666)
    assert shared.cli("run", "--image", image, "--output", "/root/steelyard-out", "--", "true").returncode == 125
    assert not Path("/root/steelyard-out").exists()


def test_volumes_and_scratch_are_seen_inside_at_their_paths(shared: Cluster, image: str) -> None:
    shared.ok("volumes", "create", "data")
    run(shared, image, "echo kept > /data/file", "--volume", "data:/data")
    script = "cat /data/file; echo x > /data/other || echo read-only; echo s > $STEELYARD_SCRATCH/x && ls $STEELYARD_SCRATCH"
    out = run(shared, image, script, "--volume", "data:/data:ro", "--scratch", "16MB")
    assert out.split() == ["kept", "read-only", "x"]


def test_secrets_come_as_variables_and_as_files(shared: Cluster, image: str) -> None:
    shared.ok("secrets", "create", "db", "PASSWORD", input=b"hunter2-hunter2")
    script = 'test "$PASSWORD" = hunter2-hunter2 && echo variable'
    assert run(shared, image, script, "--secret", "db") == "variable\n"
    script = 'test "$(cat $STEELYARD_SECRETS/db/PASSWORD)" = hunter2-hunter2 && echo file'
    assert run(shared, image, script, "--secret", "db:files") == "file\n"
    shared.ok("secrets", "delete", "db")


def test_no_variable_of_the_users_brings_a_folder_of_the_machine_in(shared: Cluster, image: str) -> None:
    for name in ("STEELYARD_SCRATCH", "STEELYARD_CA", "STEELYARD_SECRETS", "TMPDIR"):
        out = run(shared, image, f"ls -d {shared.folder} 2>/dev/null; echo end", "--env", f"{name}={shared.folder}")
        assert out == "end\n", name


def test_the_ranks_of_a_gang_each_get_a_container(shared: Cluster, image: str) -> None:
    out = run(shared, image, "echo rank $RANK of $WORLD_SIZE as pid $$", "--tasks-per-node", "2")
    assert sorted(line.partition("rank ")[2] for line in out.splitlines()) == ["0 of 2 as pid 1", "1 of 2 as pid 1"]


# -- what cannot be


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--image", "nginx", "--", "true"), "docker://nginx"),
        (("--image", "{image}", "--", "no-such-program"), "no program 'no-such-program'"),
        (("--image", "{host}/missing:1", "--", "true"), "no such image or tag"),
        (("--image", "{image}", "--gpus", "1", "--", "true"), "this machine has no GPU"),
        (("--image", "{image}", "--as-root", "--", "true"), "as_root"),
        (
            (
                "--image",
                "{image}",
            ),
            "names no command",
        ),
        (("--network", "none", "--", "true"), "--image"),
        ((), "Say what to run"),
    ],
)
def test_what_cannot_be_is_said(shared: Cluster, registry: Registry, image: str, argv: tuple[str, ...], words: str) -> None:
    done = shared.cli("run", *(word.format(image=image, host=registry.host) for word in argv))
    assert done.returncode in (2, 125), done
    assert words in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_a_step_that_wants_root_is_quoted_with_what_to_do(shared: Cluster, image: str) -> None:
    done = shared.cli("run", "--image", image, "--", "sh", "-c", "echo starting; chown web /tmp || exit 3")
    assert done.returncode == 3
    said = done.stderr.decode()
    assert "chown: /tmp: Operation not permitted" in said
    assert "It expects to be root, at this step: 'chown: /tmp: Operation not permitted'. Root of a container may not" in said
    assert "expects to be root" not in shared.cli("run", "--image", image, "--", "sh", "-c", "cat /none; exit 3").stderr.decode()
    assert "expects to be root" not in shared.cli("run", "--", "sh", "-c", "echo must be run as root; exit 3").stderr.decode()


# -- the walls

ESCAPES = {
    "mount a file system": "mount -t tmpfs none /tmp",
    "mount the machine's disk": "mknod /tmp/disk b 254 0 && cat /tmp/disk",
    "make a device": "mknod /tmp/kmsg c 1 11",
    "write kernel settings": "echo 1 > /proc/sys/kernel/sysrq",
    "write sysrq": "echo b > /proc/sysrq-trigger",
    "read the kernel's memory": "head -c 1 /proc/kcore | grep -q .",
    "read the kernel's log": 'test -n "$(head -c 1 /proc/kmsg)"',
    "write cgroups": "ls /sys/fs/cgroup/* || echo 0 > /sys/fs/cgroup/cgroup.procs",
    "write sysfs": "for f in /sys/class/net/*/mtu; do echo 1400 > $f && exit 0; done; exit 1",
    "reach the kernel's debugging": "ls /sys/kernel/debug/*",
    "become another user of the machine": "chown 1000:1000 /tmp",
    "see the machine's processes": "test $(ls -d /proc/[0-9]* | wc -l) -gt 10",
    "kill the spawner": "kill -9 2",
    "read root's files through init": "cat /proc/1/root/root/.bashrc /proc/1/root/etc/shadow",
    "use a core pattern": "echo '|/bin/x' > /proc/sys/kernel/core_pattern",
    "change its own maps": "echo '0 0 1' > /proc/self/uid_map",
    "leave by pivot": "chroot /proc/1/root/.. ls /run/steelyard",
    "unmask a path": "umount /proc/kcore",
    "new user namespace": "unshare -r true",
}


@pytest.mark.parametrize("case", ESCAPES)
def test_no_way_out(shared: Cluster, image: str, case: str) -> None:
    done = shared.cli("run", "--cpus", "0.1", "--image", image, "--", "sh", "-c", ESCAPES[case])
    assert done.returncode not in (0, 125), done.stdout.decode()


def test_ports_below_1024_are_free_in_a_network_of_its_own_and_refused_with_words_in_the_machines(
    shared: Cluster, image: str
) -> None:
    serve = "httpd -p 127.0.0.1:80 -h /etc && wget -q -O - http://127.0.0.1:80/group"
    assert "web:x:102" in run(shared, image, serve, "--network", "none")
    refused = shared.cli("run", "--cpus", "0.1", "--image", image, "--", "httpd", "-f", "-p", "80")
    assert refused.returncode == 1
    assert "at this step: 'httpd: bind: Permission denied'. Ports below 1024" in refused.stderr.decode()


def test_a_network_of_its_own_has_loopback_alone(shared: Cluster, image: str) -> None:
    out = run(shared, image, "ls /proc/sys/net/ipv4/conf; cat /proc/net/tcp", "--network", "none").splitlines()
    assert out[:3] == ["all", "default", "lo"]
    assert len(out) == 4, "a head of a table, and none of the machine's sockets"
    assert len(run(shared, image, "cat /proc/net/tcp").splitlines()) > 1


def test_the_environment_of_an_image_reaches_no_process_of_root(shared: Cluster, registry: Registry) -> None:
    config = {"Env": ["PATH=/bin", "LD_PRELOAD=/evil.so", "EVIL=1"]}
    job = submit(shared, registry.add("evil:1", OciImage(busybox_entries(), config=config)), "sleep", "1000")
    shared.wait_job(job, "RUNNING")
    host_pid(shared, job, "sleep")
    environ = Path(f"/proc/{host_pid(shared, job, 'crun')}/environ").read_bytes()
    assert b"EVIL" not in environ
    shared.ok("stop", job)
    shared.wait_job(job, "STOPPED")


def test_a_bundle_which_names_variables_is_roots_alone(shared: Cluster, image: str) -> None:
    job = submit(shared, image, "sleep", "1000", env={"TOKEN": "s3cret"})
    shared.wait_job(job, "RUNNING")
    folder = (Path("/run/steelyard") / shared.tag / "containers").resolve()
    assert (folder / f"{job}.1" / "config.json").stat().st_mode & 0o077 == 0
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    assert kind == "tmpfs", "no secret of a variable reaches a disk"
    shared.ok("stop", job)


def test_a_jobs_record_names_its_image(shared: Cluster, image: str) -> None:
    job = submit(shared, image, "true")
    assert shared.wait_job(job, "SUCCEEDED")["image"] == image
