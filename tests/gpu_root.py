"""A made-up machine with NVIDIA GPUs, RDMA cards and a driver, as folders: what /proc, /sys and installers would show."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from steelyard.model.cdi import CdiFacts, NvidiaDriver, OwnNode
from steelyard.model.topology import Gpu, MigInstance, Nic, Topology

VERSION = "570.86.15"
GPUS = ("0000:0f:00.0", "0000:23:00.0", "0000:4d:00.0")
UUIDS = tuple(f"GPU-0000000{at}-1111-2222-3333-444444444444" for at in range(3))
MIG = "MIG-00000000-1111-2222-3333-444444444444"
CARD, PLAIN_CARD = "0000:81:00.0", "0000:82:00.0"
UVM_MAJOR, CAPS_MAJOR = 511, 237
FOLDER = f"usr/lib/{os.uname().machine}-linux-gnu"
#: the last is cut by MIG: one part is given out, the other is somebody else's
TOPOLOGY = Topology(
    gpus=(
        *(Gpu(pci, "NVIDIA H100", "NVIDIA", pci=pci, index=at, uuid=UUIDS[at]) for at, pci in enumerate(GPUS[:2])),
        Gpu(GPUS[2], "NVIDIA H100", "NVIDIA", pci=GPUS[2], index=2, uuid=UUIDS[2], mig=True,
            mig_instances=(MigInstance(MIG, "3g.40gb", None, 1, 0), MigInstance(MIG + "x", "3g.40gb", None, 2, 0))),
    ),
    nics=(Nic(CARD, "mlx5_0", CARD, rdma=True), Nic(PLAIN_CARD, "eth1", PLAIN_CARD, rdma=False)),
)  # fmt: skip

#: what it shows, as one look
LIBRARY = f"/{FOLDER}/libcuda.so.{VERSION}"
PERSISTENCED, FABRIC, MPS = "/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket", "/tmp/nvidia-mps"
DRIVER = NvidiaDriver(VERSION, (LIBRARY,), ("/opt/bin/nvidia-smi",), PERSISTENCED, FABRIC, MPS)
FACTS = CdiFacts(
    driver=DRIVER,
    own_nodes={
        GPUS[0]: (OwnNode("/dev/nvidia1", (195, 1)), OwnNode("/dev/dri/renderD128", (226, 128))),
        GPUS[1]: (OwnNode("/dev/nvidia0", (195, 0)),),
        GPUS[2]: (
            OwnNode("/dev/nvidia2", (195, 2)),
            *(OwnNode(f"/dev/nvidia-caps/nvidia-cap{at}", (237, at), part)
              for at, part in ((30, (1, None)), (31, (1, 0)), (40, (2, None)), (41, (2, 0)))),
        ),
        CARD: (OwnNode("/dev/infiniband/uverbs0", (231, 192)),),
    },
    shared_nodes={
        "/dev/nvidiactl": (195, 255), "/dev/nvidia-uvm": (511, 0), "/dev/nvidia-uvm-tools": (511, 1), "/dev/kfd": (236, 0),
        "/dev/infiniband/rdma_cm": (10, 58),
    },
    aliases={LIBRARY: ("libcuda.so", "libcuda.so.1")},
)  # fmt: skip


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def make_devices(root: Path) -> Path:
    """The kernel's side. Minor numbers are not in the order of PCI addresses."""
    for pci, minor in zip(GPUS, (1, 0, 2), strict=True):
        write(root / f"proc/driver/nvidia/gpus/{pci}/information", f"Model: NVIDIA H100\nDevice Minor: \t {minor}\n")
        (root / f"sys/bus/pci/devices/{pci}").mkdir(parents=True)
    devices = (
        f"Character devices:\n  1 mem\n195 nvidia\n{UVM_MAJOR} nvidia-uvm\n{CAPS_MAJOR} nvidia-caps\n\nBlock devices:\n  7 loop\n"
    )
    write(root / "proc/devices", devices)
    minors = "config 1\nmonitor 2\ngpu2/gi1/access 30\ngpu2/gi1/ci0/access 31\ngpu2/gi2/access 40\ngpu2/gi2/ci0/access 41\n"
    write(root / "proc/driver/nvidia-caps/mig-minors", minors)
    for card in (CARD, PLAIN_CARD):
        (root / f"sys/bus/pci/devices/{card}").mkdir(parents=True)
    # /dev/zero's number, so that it can be opened
    write(root / "sys/class/infiniband_verbs/uverbs0/dev", "1:5\n")
    (root / "sys/class/infiniband_verbs/uverbs0/device").symlink_to(root / f"sys/bus/pci/devices/{CARD}")
    write(root / "sys/class/misc/rdma_cm/dev", "1:7\n")
    return root


def make_driver(root: Path, library: bytes = b"x") -> Path:
    """What an installer leaves. `library` is the content of each library."""
    write(
        root / "proc/driver/nvidia/version",
        f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Wed Jan 1\nGCC version: 12\n",
    )
    for name in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"):
        write(root / FOLDER / f"{name}.so.{VERSION}").write_bytes(library)
        (root / FOLDER / f"{name}.so.1").symlink_to(f"{name}.so.{VERSION}")
    (root / FOLDER / "libcuda.so").symlink_to("libcuda.so.1")
    write(root / FOLDER / "libother.so.1")
    write(root / "usr/bin/nvidia-smi", "#!/bin/sh\necho driver\n").chmod(0o755)
    return root


def make_specification(hook: str = "/usr/bin/nvidia-ctk", **fields: Any) -> dict[str, Any]:
    """As NVIDIA's toolkit writes it, for the first two GPUs, by number and by UUID."""
    library = f"/{FOLDER}/libcuda.so.{VERSION}"
    links = ["create-symlinks", "--link", f"libcuda.so.1::/{FOLDER}/libcuda.so"]
    hooks = [links, ["update-ldcache", "--folder", f"/{FOLDER}"], ["enable-cuda-compat", "--host-driver-version", VERSION]]
    device = {
        at: {"deviceNodes": [{"path": f"/dev/nvidia{minor}", "major": 195, "minor": minor}]} for at, minor in ((0, 1), (1, 0))
    }
    every = [node for edits in device.values() for node in edits["deviceNodes"]]
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            *({"name": str(at), "containerEdits": edits} for at, edits in device.items()),
            *({"name": UUIDS[at], "containerEdits": edits} for at, edits in device.items()),
            {"name": "all", "containerEdits": {"deviceNodes": every}},
        ],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void", "FROM_CDI=yes"],
            "deviceNodes": [{"path": "/dev/nvidiactl", "type": "c", "major": 1, "minor": 9}],
            "mounts": [{"hostPath": library, "containerPath": library, "options": ["ro", "nosuid", "nodev", "bind"]}],
            "hooks": [{"hookName": "createContainer", "path": hook, "args": ["nvidia-ctk", "hook", *args]} for args in hooks],
        },
        **fields,
    }  # fmt: skip


def write_specification(root: Path, content: object, name: str = "nvidia.json", folder: str = "etc/cdi") -> Path:
    return write(root / folder / name, content if isinstance(content, str) else json.dumps(content))
