"""Which bundle a workload gets, whose ids are inside, and which process a signal can't reach."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from steelyard.errors import Refused
from steelyard.model.cdi import DeviceEdits
from steelyard.model.ids import WorkloadId
from steelyard.model.image import Image, UserIds
from steelyard.model.mount import Bind, DeviceNode
from steelyard.runtime import container
from steelyard.runtime.container import Containers, Wanted, place_libraries
from steelyard.runtime.oci.ranges import make_maps, owner_range
from steelyard.runtime.oci.steps import StepMade

ALICE, BOB = (1000, 100), (1001, 100)
JOB = WorkloadId("7.1")


@pytest.fixture
def containers(tmp_path: Path) -> Containers:
    root = tmp_path / "images/roots/abc/rootfs"
    (root / "bin").mkdir(parents=True)
    (root / "bin/app").write_text("x")
    (root / "bin/app").chmod(0o755)
    (root / "bin/data").write_text("x")
    (root / "link").symlink_to("/bin/app")
    (root / "out").symlink_to("/../../../../../../bin/sh")
    return Containers(tmp_path / "run/containers", tmp_path / "images", "node1")


def image(**fields: object) -> Image:
    return Image(**{"digest": "abc", "reference": "r.io/app:1", "env": {"PATH": "/bin", "A": "image"}, **fields})  # type: ignore[arg-type]


def bundle(tmp_path: Path) -> dict[str, object]:
    return msgspec.json.decode((tmp_path / "run/containers/7.1/config.json").read_bytes())


def test_what_is_asked_stands_over_what_the_image_says(containers: Containers, tmp_path: Path) -> None:
    command, rootfs = containers.make(JOB, image(cwd="/srv"), Wanted(("app", "-x"), {"A": "mine"}), ALICE)
    process = bundle(tmp_path)["process"]
    assert process["args"] == ["app", "-x"]  # type: ignore[index]
    assert process["env"] == ["A=mine", "HOME=/", "PATH=/bin"]  # type: ignore[index]
    assert process["cwd"] == "/srv"  # type: ignore[index]
    assert (command[0], command[-1]) == ("crun", "7.1")
    assert rootfs.lower == str(tmp_path / "images/roots/abc/rootfs")
    assert (tmp_path / "run/containers/7.1/config.json").stat().st_mode & 0o777 == 0o600


def test_a_script_runs_instead_of_the_entry_point_and_finds_what_is_brought_in_first(
    containers: Containers, tmp_path: Path
) -> None:
    wanted = Wanted(("/app/script",), {}, interpreter="/bin/app", programs="/home/slurm/bin")
    containers.make(JOB, image(entrypoint=("/bin/false",)), wanted, ALICE)
    process = bundle(tmp_path)["process"]
    assert process["args"] == ["/app/script"]  # type: ignore[index]
    assert "PATH=/home/slurm/bin:/bin" in process["env"]  # type: ignore[index]
    with pytest.raises(Refused, match="no program '/bin/bash'"):
        containers.make(JOB, image(), Wanted(("/app/script",), {}, interpreter="/bin/bash"), ALICE)


def test_an_agent_that_comes_later_knows_what_was_made_until_it_is_forgotten(containers: Containers, tmp_path: Path) -> None:
    containers.make(JOB, image(), Wanted(("app",), {}), ALICE)
    later = Containers(tmp_path / "run/containers", tmp_path / "images", "node1")
    assert later.made(JOB) == containers.made(JOB) is not None
    later.forget(JOB)
    assert Containers(tmp_path / "run/containers", tmp_path / "images", "node1").made(JOB) is None
    assert not (tmp_path / "run/containers/7.1").exists()


def test_root_inside_is_the_owner_and_every_other_id_is_of_a_range_of_theirs(containers: Containers) -> None:
    assert containers.ids(image(), ALICE) == ALICE
    web = image(ids=UserIds(101, 102))
    alice, bob = containers.ids(web, ALICE), containers.ids(web, BOB)
    assert alice != bob
    assert containers.ids(web, ALICE) == alice
    assert alice[0] > 0x7000_0000 + 2 * 65536


def test_ranges_of_users_never_meet_and_are_kept(tmp_path: Path) -> None:
    firsts = [owner_range(tmp_path, uid) for uid in (5, 6, 5, 7)]
    assert firsts[0] == firsts[2]
    spans = [set(range(inside[1], inside[1] + inside[2], 4096)) for first in set(firsts) for inside in make_maps(first, 1)[0][1:]]
    assert sum(map(len, spans)) == len(set().union(*spans))


@pytest.mark.parametrize("program", ["app", "/bin/app", "/link", "bin/app"])
def test_a_program_of_the_image_is_found_by_name_path_and_link(containers: Containers, program: str) -> None:
    containers.make(JOB, image(), Wanted((program,), {}), ALICE)


@pytest.mark.parametrize("program", ["nothing", "/bin/data", "/bin", "/out", "../../bin/sh"])
def test_what_is_no_program_of_the_image_is_refused_before_it_starts(containers: Containers, program: str) -> None:
    with pytest.raises(Refused, match="has no program") as refusal:
        containers.make(JOB, image(), Wanted((program,), {}), ALICE)
    assert refusal.value.code == "no-such-program"


def test_libraries_are_placed_beside_the_images_own_libc(tmp_path: Path) -> None:
    root, machine = tmp_path / "root", os.uname().machine
    (root / "usr/lib64").mkdir(parents=True)
    (root / "usr/lib64/libc.so.6").write_text("x")
    (root / "lib64").symlink_to("usr/lib64")
    assert place_libraries(str(root), {"libx.so.1": "/h/x"}, ()) == [Bind("/h/x", "/usr/lib64/libx.so.1", True)]
    assert place_libraries(str(root), {"libx.so.1": "/h/x"}, [Bind("/h/x", "/usr/lib64/libx.so.1")]) == []
    (root / f"usr/lib/{machine}-linux-gnu").mkdir(parents=True)
    (root / f"usr/lib/{machine}-linux-gnu/libc.so.6").symlink_to("libc-2.36.so")
    assert place_libraries(str(root), {"libx.so.1": "/h/x"}, ())[0].target == "/usr/lib64/libx.so.1", "a libc that is not there"
    assert place_libraries(str(tmp_path), {"libx.so.1": "/h/x"}, ()) == [], "an image without a loader"


def test_what_devices_need_is_under_what_is_asked_and_over_the_image(containers: Containers, tmp_path: Path) -> None:
    edits = DeviceEdits(
        env={"A": "device", "B": "device"}, nodes=(DeviceNode("/dev/x", "c", 1, 5),), groups=(44,), lock_memory=True, notes=("n",)
    )
    _, rootfs = containers.make(JOB, image(), Wanted(("app",), {"B": "mine"}, edits=edits), ALICE)
    process = bundle(tmp_path)["process"]
    assert process["env"] == ["A=device", "B=mine", "HOME=/", "PATH=/bin"]  # type: ignore[index]
    assert process["user"]["additionalGids"] == [44]  # type: ignore[index]
    assert (rootfs.devices, rootfs.lock_memory) == (edits.nodes, True)
    assert containers.enter(JOB, "1", ("sh",))[1].lock_memory is True, "what is run in it later may lock as much"
    made = containers.made(JOB)
    assert made is not None and (made.devices, made.notes) == (("/dev/x",), ("n",))


def test_a_workload_is_brought_into_a_container_with_variables_of_its_own(containers: Containers, tmp_path: Path) -> None:
    containers.make(JOB, image(), Wanted(("app",), {}, detached=True), ALICE)
    inside = WorkloadId("base.1")
    command, rootfs = containers.enter_for_good(inside, JOB, ["python3", "-c", ""], {"ONLY": "this"}, fds=2)
    process = msgspec.json.decode((tmp_path / "run/containers/base.1/process.json").read_bytes())
    assert (process["args"], process["env"]) == (["python3", "-c", ""], ["ONLY=this"])
    assert process["capabilities"]["bounding"] == [] and process["noNewPrivileges"]
    assert command[-1] == JOB and "--detach" in command and rootfs.leaves in command
    assert rootfs.lower == "", "nothing is mounted for it"
    assert containers.made(inside) == containers.made(JOB)


def test_an_image_that_somebody_sleeps_on_is_in_use(containers: Containers) -> None:
    containers.pin("hello.1", image())
    assert containers.users("abc") == ["hello.1"]
    containers.pin("hello.1", None)
    assert containers.users("abc") == []


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        ("root", "start Steelyard as root"),
        ("crun", "apt-get install skopeo umoci crun"),
        ("user namespaces", "user namespaces, which are switched off here: set user.max_user_namespaces"),
        ("user namespaces in the kernel", "user namespaces"),
        ("a new kernel", "Linux 5.19 or later, and this is 5.10.0-1-amd64"),
        ("mmdebstrap", "apt-get install mmdebstrap"),
    ],
)
def test_where_there_can_be_no_containers_it_is_said_with_what_to_do(
    containers: Containers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str, words: str
) -> None:
    allowed = tmp_path / "max_user_namespaces"
    allowed.write_text("0\n" if lacks == "user namespaces" else "15000\n")
    release = "5.10.0-1-amd64" if lacks == "a new kernel" else "6.1.0-1-amd64"
    monkeypatch.setattr(container, "_USERNS_MAX", allowed)
    monkeypatch.setattr(container, "_OWN_USERNS", tmp_path / "no" if lacks == "user namespaces in the kernel" else tmp_path)
    monkeypatch.setattr(container.os, "geteuid", lambda: 1000 if lacks == "root" else 0)
    monkeypatch.setattr(container.os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(container.shutil, "which", lambda name: None if name == lacks else f"/usr/bin/{name}")
    with pytest.raises(Refused) as refusal:
        containers.check_bare()
    assert words in refusal.value.public and "Nothing was started" in refusal.value.public


def test_where_there_can_be_containers_nothing_is_said(containers: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container.os, "geteuid", lambda: 0)
    monkeypatch.setattr(container.os, "uname", lambda: SimpleNamespace(release="6.1.0-1-amd64"))
    monkeypatch.setattr(container.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(container, "_USERNS_MAX", Path("/nowhere"))
    containers.check_bare()


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT VERIFIED without root: ids of images")
def test_what_has_nothing_below_it_is_made_with_the_machines_programs_read_only(containers: Containers, tmp_path: Path) -> None:
    made = StepMade(image(digest="def"), "", "1000")
    _, rootfs = containers.make(JOB, image(digest=""), Wanted(("/bin/sh", "-c", "true"), {}, step=made), ALICE)
    config = bundle(tmp_path)
    mounts = {each["destination"]: each for each in config["mounts"]}  # type: ignore[attr-defined, index]
    assert "ro" in mounts["/usr"]["options"] and "rw" in mounts["/target"]["options"]
    assert mounts["/target"]["source"] == str(tmp_path / "images/steps/def/upper")
    assert not [place for place in mounts if "auth.conf" in place or place in ("/etc", "/etc/apt", "/root", "/home")]
    assert (rootfs.lower, rootfs.disk) == (str(tmp_path / "images/machine"), "")
    assert "CAP_SYS_ADMIN" not in config["process"]["capabilities"]["bounding"]  # type: ignore[index]
