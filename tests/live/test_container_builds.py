"""Steps upon a container image: each is carried out once, in a container, and what it leaves is an image of its owner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from steelyard_cluster import Cluster, wait_until

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries, entry, folder, link

pytestmark = NEEDS_CONTAINERS


@pytest.fixture(scope="module")
def base(registry: Registry) -> str:
    more = [
        *(link(f"bin/{name}", "busybox") for name in ("cp", "stat", "ln", "dd", "seq", "su", "tr")),
        folder("opt/old"), entry("opt/old/a", b"a"), entry("opt/old/b", b"b"), folder("opt/gone"), entry("opt/gone/x", b"x"),
        entry("etc/kept", b"kept"),
    ]  # fmt: skip
    config = {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["cat", "/opt/result"], "User": "web"}
    return registry.add("base:1", OciImage([*busybox_entries(), *more], config=config))


def build(cluster: Cluster, tmp_path: Path, expression: str) -> str:
    """What names the image then."""
    file = tmp_path / "image.py"
    file.write_text(f"import steelyard as sy\n\nimage = (sy.Image{expression})\n")
    return cluster.ok("image", "build", str(file)).strip()


def run(cluster: Cluster, image: str, script: str) -> str:
    return cluster.ok("run", "--cpus", "0.1", "--image", image, "--", "sh", "-c", script)


def jobs(cluster: Cluster) -> int:
    return len(json.loads(cluster.ok("ps", "--json")))


def test_steps_make_an_image_that_runs_as_its_base_would(shared: Cluster, base: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/words.txt").write_text("steel\nyard\n")
    steps = """
    .env({"GREETING": "hello"})
    .copy("data", "/srv/data")
    .run("echo $GREETING $(cat /srv/data/words.txt | tr '\\\\n' ' ') > /opt/result")
    .run("rm -r /opt/gone /opt/old/a; echo B > /opt/old/b; chmod 700 /opt/old; chown 101:102 /opt/old /opt/result")"""
    image = build(shared, tmp_path, f'.from_registry("{base}"){steps}')
    assert image.startswith("built:")
    assert shared.ok("run", "--image", image) == "hello steel yard\n"
    out = run(
        shared, image, "id -u; echo $FROM_IMAGE $GREETING; ls /opt /opt/old; cat /opt/old/b /etc/kept; stat -c %a:%u:%g /opt/old"
    )
    assert out.split() == ["101", "yes", "hello", "/opt:", "old", "result", "/opt/old:", "b", "B", "kept700:101:102"]
    assert run(shared, base, "ls /opt /opt/old; cat /opt/old/b").split() == ["/opt:", "gone", "old", "/opt/old:", "a", "b", "b"]
    view = json.loads(shared.ok("image", "inspect", image, "--json"))
    assert (view["references"], view["user"], view["env"]["GREETING"]) == ([image], "web", "hello")


def test_a_step_is_carried_out_once_and_one_more_costs_one_job(shared: Cluster, base: str, tmp_path: Path) -> None:
    steps = '.run("echo one > /opt/one").run("echo two > /opt/two")'
    first = build(shared, tmp_path, f'.from_registry("{base}"){steps}')
    before = jobs(shared)
    assert build(shared, tmp_path, f'.from_registry("{base}"){steps}') == first
    assert jobs(shared) == before
    more = build(shared, tmp_path, f'.from_registry("{base}"){steps}.run("cat /opt/one /opt/two > /opt/result")')
    assert jobs(shared) == before + 1
    assert shared.ok("run", "--image", more) == "one\ntwo\n"


def test_root_of_a_step_may_own_files_as_anybody_and_is_nobody_outside(shared: Cluster, base: str, tmp_path: Path) -> None:
    script = "touch /opt/mine; chown 5:6 /opt/mine; su -s /bin/sh web -c 'id -u' > /opt/result; id -u >> /opt/result"
    image = build(shared, tmp_path, f'.from_registry("{base}").run("{script}")')
    assert shared.ok("run", "--image", image) == "101\n0\n"
    assert run(shared, image, "stat -c %u:%g /opt/mine") == "5:6\n"
    stolen = build(
        shared, tmp_path, f'.from_registry("{base}").run("mknod /opt/disk b 254 0 || mount -t tmpfs none /opt || touch /opt/no")'
    )
    assert run(shared, stolen, "ls /opt/no") == "/opt/no\n"


def test_an_image_says_whom_and_what_it_runs(shared: Cluster, base: str, tmp_path: Path) -> None:
    steps = """
    .run("echo 'app:x:1200:1300::/srv/app:/bin/sh' >> /etc/passwd; echo 'more:x:1400:app' >> /etc/group")
    .user("app").command("sh", "-c", "id -u; id -g; id -G; echo $HOME 'a  b'")"""
    image = build(shared, tmp_path, f'.from_registry("{base}"){steps}')
    assert shared.ok("run", "--image", image) == "1200\n1300\n1300 1400\n/srv/app a  b\n"
    view = json.loads(shared.ok("image", "inspect", image, "--json"))
    assert (view["user"], view["entrypoint"], view["command"][:2]) == ("app", [], ["sh", "-c"])
    # a step after it is root's all the same, and the user stays
    more = build(shared, tmp_path, f'.from_registry("{base}"){steps}.run("id -u > /opt/result").command("cat", "/opt/result")')
    assert shared.ok("run", "--image", more) == "0\n"
    assert run(shared, more, "id -u") == "1200\n"


def test_a_user_that_the_image_has_not_is_refused(shared: Cluster, base: str, tmp_path: Path) -> None:
    file = tmp_path / "image.py"
    file.write_text(f'import steelyard as sy\nimage = sy.Image.from_registry("{base}").user("nobody-has-it")\n')
    failed = shared.cli("image", "build", str(file))
    assert failed.returncode == 2
    assert "runs as 'nobody-has-it', and its /etc/passwd and /etc/group have no such user" in failed.stderr.decode()


def test_a_failed_step_is_quoted_and_leaves_nothing(shared: Cluster, base: str, tmp_path: Path) -> None:
    file = tmp_path / "image.py"
    file.write_text(
        f'import steelyard as sy\nimage = sy.Image.from_registry("{base}").run("true").run("echo it is broken; exit 3")\n'
    )
    failed = shared.cli("image", "build", str(file))
    said = failed.stderr.decode()
    assert failed.returncode != 0
    assert "Step 2 of 2, run echo it is broken; exit 3" in said
    assert "| it is broken" in said
    wait_until(lambda: not list((shared.home / "images/steps").iterdir()), 20, "what the step wrote is gone")


def test_what_a_step_sees_has_neither_a_token_nor_the_machines_folders(shared: Cluster, base: str, tmp_path: Path) -> None:
    image = build(shared, tmp_path, f'.from_registry("{base}").run("env > /opt/result; ls / >> /opt/result")')
    words = shared.ok("run", "--image", image)
    assert "STEELYARD" not in words and "TOKEN" not in words
    assert "PATH=/bin" in words.split()


def test_what_is_not_there_says_to_build_it_again(shared: Cluster) -> None:
    missing = shared.cli("run", "--image", f"built:{'0' * 64}", "--", "true")
    assert "is not on this machine any more" in missing.stderr.decode()
    assert "64 hex digits" in shared.cli("run", "--image", "built:abc", "--", "true").stderr.decode()
