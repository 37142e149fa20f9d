"""Terminals of what runs: real ptys on both ends, through the whole platform."""

from __future__ import annotations

import signal
import statistics
import time

import pytest
from person import Person, person
from steelyard_cluster import Cluster, wait_until

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries

CONFIG = {"Env": ["PATH=/bin"], "WorkingDir": "/tmp", "Entrypoint": ["sh", "-c", 'echo entered; exec "$@"', "entry"]}
#: its prompt is another than what is typed
SHELL = ("env", "PS1=ready> ", "sh")


@pytest.fixture(scope="module")
def image(registry: Registry) -> str:
    return registry.add("busybox:1", OciImage(busybox_entries(), config=CONFIG))


def check_terminal(me: Person) -> None:
    """At the prompt of a shell: size, keys, exit code."""
    me.see(b"ready> ")
    me.type(b"tty; stty size; echo is-$TERM\r")
    me.see(b"/dev/pts/")
    me.see(b"30 100")
    me.see(b"is-vt100")
    me.see(b"ready> ")
    me.resize(11, 77)
    # the size travels beside the keys: it is there when it is told
    me.type(b"until stty size | grep '11 77'; do sleep 0.1; done\r")
    me.see(b"\n11 77")
    me.see(b"ready> ")
    # said by the program that the key is for: a shell that is just about to start it would keep the signal to itself
    me.type(b"sh -c \"echo be''gun; exec sleep 1000\"\r")
    me.see(b"begun")
    me.type(b"\x03")
    me.see(b"ready> ")
    me.type(b"exit 7\r")
    assert me.wait() == 7
    assert me.restored


def test_a_shell_in_a_job_is_as_if_it_were_here(shared: Cluster) -> None:
    job = shared.running("sleep", "1000")
    with person(shared, "exec", "-t", job, "--", *SHELL) as me:
        check_terminal(me)
    assert shared.job(job)["state"] == "RUNNING"
    shared.ok("stop", job)


@NEEDS_CONTAINERS
def test_a_shell_in_a_container_is_the_same(shared: Cluster, image: str) -> None:
    job = shared.running("sleep", "1000", cwd="", image=image)
    with person(shared, "exec", "-t", job, "--", *SHELL) as me:
        check_terminal(me)
    shared.ok("stop", job)


def test_hanging_up_tells_the_program_and_puts_the_terminal_back(shared: Cluster) -> None:
    job = shared.running("sleep", "1000")
    with person(shared, "exec", "-t", job, "--", *SHELL) as me:
        me.see(b"ready> ")
        me.type(b"echo $$ > /tmp/$STEELYARD_JOB_ID.pid; echo no''ted\r")
        me.see(b"noted")
        me.see(b"ready> ")
        me.type(b"~.")
        assert me.wait() == 128 + signal.SIGHUP
        assert me.restored
    ended = shared.cli("exec", job, "--", "sh", "-c", "p=$(cat /tmp/$STEELYARD_JOB_ID.pid); while kill -0 $p; do sleep 0.1; done")
    assert ended.returncode == 0
    shared.ok("stop", job)


def test_a_command_that_is_ended_puts_the_terminal_back(shared: Cluster) -> None:
    job = shared.running("sleep", "1000")
    with person(shared, "exec", "-t", job, "--", *SHELL) as me:
        me.see(b"ready> ")
        assert not me.restored
        me.signal(signal.SIGTERM)
        assert me.wait() == 128 + signal.SIGHUP
        assert me.restored
    shared.ok("stop", job)


def test_much_output_arrives_whole(shared: Cluster) -> None:
    job = shared.running("sleep", "1000")
    with person(shared, "exec", "-t", job, "--", "sh", "-c", "seq 1 300000; exit 3") as me:
        assert me.wait() == 3
        lines = me.seen.split(b"\r\n")
    assert lines[:300_000] == [str(number).encode() for number in range(1, 300_001)]
    shared.ok("stop", job)


def test_a_key_comes_back_at_once(shared: Cluster) -> None:
    job = shared.running("sleep", "1000")
    took: list[float] = []
    with person(shared, "exec", "-t", job, "--", "sh", "-c", "echo ready; exec cat") as me:
        me.see(b"ready\r\n")
        for _ in range(50):
            began = time.monotonic()
            me.type(b"x")
            me.see(b"x")
            took.append(time.monotonic() - began)
        me.type(b"\r\x04")
        assert me.wait() == 0
    # the promise is 30 ms on a quiet machine; here others run beside
    assert statistics.median(took) < 1.0, took
    shared.ok("stop", job)


def test_without_a_terminal_it_is_refused_in_words(shared: Cluster) -> None:
    done = shared.cli("exec", "-t", "j-000001", "--", "true")
    assert done.returncode == 125 and b"no terminal" in done.stderr
    with person(shared, "exec", "-t", "j-999999", "--", "true") as me:
        assert me.wait() == 125
        assert b"no job" in me.seen


def test_a_terminal_outlives_server_and_agent(shared: Cluster) -> None:
    job = shared.running("sleep", "1000")
    with person(shared, "exec", "-t", job, "--", *SHELL) as me:
        me.see(b"ready> ")
        for name in ("server", "agent"):
            shared.wait_replaced(name, shared.kill(name))
            # keys that were typed while nobody was there are lost, as on a line that was cut: until one is answered
            wait_until(lambda: me.answers(b"echo al''ive\r", b"alive"), 30, "the terminal to be back")
        me.type(b"\r")
        me.see(b"ready> ")
        me.type(b"exit 5\r")
        assert me.wait() == 5
    assert shared.job(job)["state"] == "RUNNING"
    shared.ok("stop", job)


# -- shells that are jobs


def test_a_shell_is_a_job_that_ends_with_it(shared: Cluster) -> None:
    with person(shared, "shell", "--cpus", "0.1", "--env", "PS1=ready> ", "-c", "exec sh") as me:
        me.see(b"ready> ")
        me.type(b"echo is-$STEELYARD_JOB_ID-\r")
        me.see(b"is-j-")
        job = "j-" + me.see(b"-\r\n").decode()
        assert shared.job(job)["state"] == "RUNNING"
        me.type(b"\r")
        check_terminal(me)
    ended = shared.wait_job(job, "FAILED")
    assert (ended["exit_code"], ended["name"]) == (7, "shell")


@NEEDS_CONTAINERS
def test_a_shell_of_an_image_runs_instead_of_its_entry_point(shared: Cluster, image: str) -> None:
    with person(shared, "shell", "--cpus", "0.1", "--image", image, "--env", "PS1=ready> ") as me:
        check_terminal(me)
    assert b"entered" not in me.seen


def test_a_shell_inside_a_job_leaves_it_running(shared: Cluster) -> None:
    job = shared.running("sleep", "1000")
    with person(shared, "shell", job, "-c", "PS1='ready> ' exec sh") as me:
        check_terminal(me)
    assert shared.job(job)["state"] == "RUNNING"
    shared.ok("stop", job)


def test_the_queue_is_shown_and_ctrl_c_gives_up_the_place(shared: Cluster) -> None:
    cores = shared.api("GET", "/v1/machine").json()["cores"]
    holder = shared.running("sleep", "1000", resources={"cpus": len(cores)})
    with person(shared, "shell", "--cpus", str(len(cores))) as me:
        me.see(b"waits, number 1 in the queue")
        me.type(b"\x03")
        assert me.wait() == 128 + signal.SIGINT
        assert me.restored
    shared.ok("stop", holder)
    queued = shared.api("GET", "/v1/queue").json()
    assert queued == []


def test_hanging_up_ends_the_job(shared: Cluster) -> None:
    with person(shared, "shell", "--cpus", "0.1", "--name", "left", "--env", "PS1=ready> ", "-c", "exec sh") as me:
        me.see(b"ready> ")
        me.type(b"~.")
        assert me.wait() == 128 + signal.SIGHUP
    job = next(row["id"] for row in shared.api("GET", "/v1/jobs").json() if row["name"] == "left")
    shared.wait_job(job, "FAILED")
