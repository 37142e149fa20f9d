"""GPUs and RDMA cards in containers, on a made-up machine: the spawner, control groups, crun and the image are real, the devices
are other device files under their names. NOT VERIFIED on real GPUs."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper_rig import A, KeeperRig, make_job, play
from spawner_rig import until

import gpu_root
from gpu_root import CARD, FOLDER, GPUS, MIG, PLAIN_CARD, TOPOLOGY, UUIDS, VERSION
from machines import make_machine
from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries, entry, link
from steelyard.host.machine import observe_machine
from steelyard.model.job import Plan
from steelyard.model.proof import Proof
from steelyard.wire.agent import AttemptState

pytestmark = NEEDS_CONTAINERS
SEEN = observe_machine()
MACHINE = make_machine(cores=SEEN.cores, numa_nodes=SEEN.numa_nodes, memory_bytes=SEEN.memory_bytes, topology=TOPOLOGY)
PATHS = {"Env": ["PATH=/bin"]}
#: device files that not every container has
NODES = "cd /dev; find . -type c -o -type b | grep -E 'nvidia|infiniband' | sort"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    # what is brought into a container is read by its user
    tmp_path.parent.chmod(0o711)
    tmp_path.parent.parent.chmod(0o711)
    tmp_path.chmod(0o755)
    return gpu_root.make_devices(tmp_path)


@pytest.fixture(scope="module")
def image(registry: Registry) -> str:
    names = (link(f"bin/{name}", "busybox") for name in ("find", "sort", "wc", "nc"))
    return registry.add("busybox:1", OciImage([*busybox_entries(), *names], config=PATHS))


def run(root: Path, image: str, script: str, plan: Plan) -> tuple[AttemptState, list[str]]:
    """How it ended, and the lines that it said."""
    ended: list[tuple[AttemptState, list[str]]] = []

    async def life(rig: KeeperRig) -> None:
        rig.assign(make_job("sh", "-c", script, plan=plan, image=image, cwd="", env={}))
        state = await rig.until_phase("ended", "not-started")
        streams = (rig.keeper.files.read_output(A, stream, 0, 100_000).data for stream in ("stdout", "stderr"))
        ended.append((state, b"".join(streams).decode().splitlines()))

    play(life, MACHINE, root)
    return ended[0]


def test_exactly_the_given_gpu_of_a_specification_is_inside_and_no_hook_ran(root: Path, image: str) -> None:
    witness = root / "hook-ran"
    hook = gpu_root.write(root / "nvidia-ctk", f"#!/bin/sh\ntouch {witness}\n")
    hook.chmod(0o755)
    gpu_root.make_driver(root)
    gpu_root.write_specification(root, gpu_root.make_specification(str(hook)))
    script = f"{NODES}; echo $CUDA_VISIBLE_DEVICES $FROM_CDI; ls -l nvidia1; ls /{FOLDER}; head -c 1 nvidiactl | wc -c"
    state, lines = run(root, image, script, Plan(share=0.1, gpus=(GPUS[0],)))
    assert state.exit_code == 0, (state, lines)
    assert lines[:3] == ["./nvidia1", "./nvidiactl", f"{UUIDS[0]} yes"]
    assert re.match(r"crw-rw-rw- .* 195, +1 ", lines[3]), lines
    assert lines[4:] == ["libcuda.so", f"libcuda.so.{VERSION}", "1"], "links without a hook, and a file that can be opened"
    assert not witness.exists()


def test_a_newer_specification_in_yaml_stands_over_an_older_one(root: Path, image: str) -> None:
    gpu_root.write_specification(root, gpu_root.make_specification())
    uuid = f"cdiVersion: 0.6.0\nkind: nvidia.com/gpu\ndevices:\n- name: {UUIDS[1]}\n  containerEdits:\n    deviceNodes:\n"
    text = f"{uuid}    - path: /dev/nvidia0\n      hostPath: /dev/elsewhere\n      major: 195\n      minor: 0\n"
    gpu_root.write_specification(root, text, "x.yaml", "var/run/cdi")
    state, lines = run(root, image, f"{NODES}; echo .$FROM_CDI", Plan(share=0.1, gpus=(GPUS[1],)))
    assert (state.exit_code, lines) == (0, ["./nvidia0", "."])


def test_without_a_specification_the_drivers_own_files_are_brought_in(root: Path, image: str) -> None:
    gpu_root.make_driver(root)
    state, lines = run(root, image, f"{NODES}; /usr/bin/nvidia-smi", Plan(share=0.1, gpus=(GPUS[1],)))
    assert state.exit_code == 0, (state, lines)
    assert lines == ["./nvidia-uvm", "./nvidia-uvm-tools", "./nvidia0", "./nvidiactl", "driver"]


def test_a_part_that_mig_cut_comes_without_its_neighbour(root: Path, image: str) -> None:
    gpu_root.make_driver(root)
    state, lines = run(
        root, image, f"{NODES}; echo $CUDA_VISIBLE_DEVICES", Plan(share=0.1, gpus=(GPUS[2],), mig_instances=(MIG,))
    )
    assert state.exit_code == 0, (state, lines)
    caps = ["./nvidia-caps/nvidia-cap30", "./nvidia-caps/nvidia-cap31"]
    assert lines == [*caps, "./nvidia-uvm", "./nvidia-uvm-tools", "./nvidia2", "./nvidiactl", MIG]


@pytest.fixture
def little_locked() -> Iterator[int]:
    """What may be locked at most here, in KiB, while the spawner is started with 1 MiB of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, hard))
    yield hard >> 10
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def most_locked(little_locked: int) -> str:
    """In KiB. Without CAP_SYS_RESOURCE the spawner may not lift the limit: then what there is of it."""
    held = int(re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.M)[1], 16)  # type: ignore[index]
    return "unlimited" if held >> 24 & 1 or little_locked < 0 else str(little_locked)


def test_a_card_brings_its_files_and_the_right_to_lock_memory(root: Path, image: str, little_locked: int) -> None:
    script = f"{NODES}; ulimit -l; head -c 3 infiniband/uverbs0 | wc -c"
    state, lines = run(root, image, script, Plan(share=0.1, nics=(CARD,)))
    most = most_locked(little_locked)
    assert (state.exit_code, lines) == (0, ["./infiniband/rdma_cm", "./infiniband/uverbs0", most, "3"]), state.detail
    assert run(root, image, f"{NODES}; ulimit -l", Plan(share=0.1, nics=(PLAIN_CARD,)))[1] == ["1024"]


def test_work_without_devices_has_none_inside_whatever_files_say(root: Path, image: str) -> None:
    gpu_root.make_driver(root)
    gpu_root.write_specification(root, gpu_root.make_specification())
    assert run(root, image, f"{NODES}; echo .$FROM_CDI", Plan(share=0.1))[1] == ["."]


def test_the_proof_lists_the_device_files_that_are_inside_and_reads_back_what_may_be_locked(
    root: Path, image: str, little_locked: int
) -> None:
    gpu_root.make_driver(root)
    proofs: list[Proof] = []

    async def life(rig: KeeperRig) -> None:
        plan = Plan(share=0.1, gpus=(GPUS[1],), nics=(CARD,))
        rig.assign(make_job("sh", "-c", "echo up; exec sleep 1000", plan=plan, image=image, cwd="", env={}))
        await until(lambda: rig.keeper.files.read_output(A, "stdout", 0, 10).data == b"up\n", "it to be up")
        await rig.until_phase("running")
        proof = rig.keeper.proof(A)
        assert proof is not None
        proofs.append(proof)

    play(life, MACHINE, root)
    gpu = ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidiactl"]
    assert proofs[0].got["device_files"] == ["/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0", *gpu]
    assert proofs[0].asked["memory_lock_limit"] == "unlimited"
    most = most_locked(little_locked)
    assert proofs[0].got["memory_lock_limit"] == (most if most == "unlimited" else f"{int(most) << 10} bytes")
    assert not any("device_files" in each for each in proofs[0].differences), proofs[0].differences
    assert any("NOT VERIFIED on real devices" in note for note in proofs[0].notes)


def test_neither_a_specification_nor_a_driver_is_said_and_nothing_starts(root: Path, image: str) -> None:
    state, _ = run(root, image, "true", Plan(share=0.1, gpus=(GPUS[0],)))
    assert state.phase == "not-started"
    assert "neither a CDI specification" in state.detail and "nvidia-ctk cdi generate" in state.detail


def test_a_specification_that_gives_a_neighbours_gpu_is_refused(root: Path, image: str) -> None:
    wrong = gpu_root.make_specification()
    gpu_root.write_specification(root, {**wrong, "devices": [{"name": UUIDS[0], "containerEdits": {"deviceNodes": [
        {"path": "/dev/nvidia1", "major": 195, "minor": 0}]}}]})  # fmt: skip
    gpu_root.make_driver(root)
    state, _ = run(root, image, "true", Plan(share=0.1, gpus=(GPUS[0],)))
    assert state.phase == "not-started"
    assert "/etc/cdi/nvidia.json would bring in /dev/nvidia1, which is /dev/nvidia0" in state.detail


@pytest.mark.skipif(
    not os.path.exists(f"/{FOLDER}/libc.so.6"), reason="NOT VERIFIED: this machine's libc is not where Debian has it"
)
@pytest.mark.parametrize("place", [FOLDER, "lib"])
def test_the_loader_of_an_image_finds_the_libraries_wherever_its_own_lie(root: Path, registry: Registry, place: str) -> None:
    """A program of this machine in an image; `libcuda` is a library that can be loaded."""
    program = "/usr/bin/cat"
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    needed = [Path(word) for word in told.split() if word.startswith("/")]
    loader = next(path for path in needed if path.name.startswith("ld-linux"))
    files = [entry(f"{place}/{path.name}", path.read_bytes()) for path in needed if path != loader]
    program_files = [entry("bin/cat.real", Path(program).read_bytes()), entry(str(loader).lstrip("/"), loader.read_bytes())]
    reference = registry.add(
        f"glibc-{place.replace('/', '-')}:1", OciImage([*busybox_entries(), *program_files, *files], config=PATHS)
    )
    gpu_root.make_driver(root, Path(f"/{FOLDER}/libutil.so.1").read_bytes())
    script = "env LD_PRELOAD=libcuda.so.1 cat.real /proc/self/maps"
    state, lines = run(root, reference, script, Plan(share=0.1, gpus=(GPUS[0],)))
    assert state.exit_code == 0, lines
    assert any(line.endswith(f"/{place}/libcuda.so.1") for line in lines), lines
