"""What crun is told, as files beside this one: a change of a container's walls shows as a change of these."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from steelyard.lifecycle.bundle import MASKED, Container, make_bundle
from steelyard.lifecycle.seccomp import make_seccomp
from steelyard.model.mount import Bind, DeviceNode

FOLDER = Path(__file__).with_name("bundles")
OWN = ((0, 1000, 1), (1, 0x7002_0001, 65535))
PLAIN = Container(
    root="/run/c/rootfs", sys="/run/c/sys", nodes="/run/c/dev", argv=("/bin/app", "-x"), env={"PATH": "/bin", "A": "1 2"},
    cwd="/srv", uid=101, gid=102, groups=(5,), uids=OWN, gids=OWN, hostname="node1", machine="x86_64",
)  # fmt: skip
WITH_ALL = Container(
    root="/run/c/rootfs", sys="/run/c/sys", nodes="/run/c/dev", argv=("sh",), env={}, cwd="", uid=0, gid=0, groups=(),
    uids=OWN, gids=OWN,
    hostname="node1", machine="aarch64", own_network=True,
    binds=(Bind("/data/set", "/data", read_only=True), Bind("/scratch/x", "/scratch/x")),
    devices=(DeviceNode("/dev/nvidia0", "c", 195, 0),),
)  # fmt: skip


@pytest.mark.parametrize(("name", "container"), [("plain", PLAIN), ("with-all", WITH_ALL)])
def test_the_bundle_is_the_one_that_was_looked_at(name: str, container: Container) -> None:
    path = FOLDER / f"{name}.json"
    text = json.dumps(make_bundle(container), indent=1) + "\n"
    if os.environ.get("RECORD"):
        path.write_text(text)
    assert text == path.read_text(), f"look at the change, then RECORD=1 writes it to {path}"


@pytest.mark.parametrize("container", [PLAIN, WITH_ALL])
def test_no_container_has_capabilities_hooks_or_devices_of_its_own(container: Container) -> None:
    bundle = make_bundle(container)
    assert "hooks" not in bundle
    assert set(map(len, bundle["process"]["capabilities"].values())) == {0}  # type: ignore[index]
    assert bundle["process"]["noNewPrivileges"] is True  # type: ignore[index]
    assert "devices" not in bundle["linux"]  # type: ignore[operator]
    mounts = bundle["mounts"]
    assert [each["destination"] for each in mounts if "nodev" not in each["options"]] == [  # type: ignore[attr-defined]
        "/dev", "/dev/pts", *(each.path for each in container.devices)
    ]  # fmt: skip
    kinds = {each["type"] for each in bundle["linux"]["namespaces"]}  # type: ignore[index]
    assert kinds >= {"user", "pid", "mount", "ipc", "uts", "cgroup"}
    assert ("network" in kinds) is container.own_network
    assert "/proc/kcore" in MASKED


def test_no_id_of_a_container_is_one_of_the_machines_but_its_owners() -> None:
    lines = make_bundle(PLAIN)["linux"]["uidMappings"]  # type: ignore[index]
    outside = {line["hostID"]: line["size"] for line in lines}
    assert outside == {1000: 1, 0x7002_0001: 65535}


def test_what_nobody_knows_answers_enosys_and_what_reaches_the_kernel_is_refused() -> None:
    profile = make_seccomp("x86_64")
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    allowed: set[str] = set()
    refused: set[str] = set()
    for rule in profile["syscalls"]:  # type: ignore[attr-defined]
        (allowed if rule["action"] == "SCMP_ACT_ALLOW" else refused).update(rule["names"])
    assert not allowed & refused
    for name in ("mount", "unshare", "setns", "bpf", "init_module", "open_by_handle_at", "kexec_load", "perf_event_open"):
        assert name in refused
    for name in ("clone3", "io_uring_setup", "keyctl", "add_key"):
        assert name not in allowed | refused, "ENOSYS: libraries fall back"
    assert {"read", "execve", "clone", "socket", "futex", "mbind", "mlock"} <= allowed
