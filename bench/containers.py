"""What does a container cost? Its start beside crun's own on the same bundle, unpacking beside umoci's own, and its memory."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Figure
from bench.installation import Installation, installation
from steelyard.agent.container_images import ContainerImages
from steelyard.config import Settings
from steelyard.host.proc import observe_memory
from steelyard.model.image import parse_image
from steelyard.model.owner import Owner
from steelyard.runtime.container import Containers
from steelyard.runtime.oci.store import ImageStore

Say = Callable[[str], None]
NEEDED = ("skopeo", "umoci", "crun", "busybox")
GROUP = "container"
FILES, FILE_BYTES = 3000, 16_384
#: enters the mounts of a container once and times crun on them; argv: lower, folder, maps as JSON, command as JSON, rounds
ALONE = """
import json, os, subprocess, sys, time
from steelyard.runtime import mount_calls, rootfs
from steelyard.wire.spawn import Rootfs
lower, folder, maps, command, rounds = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
maps = [tuple(map(tuple, each)) for each in maps]
rootfs.enter(Rootfs(lower, folder, uids=maps[0], gids=maps[1]), mount_calls.make_userns(*maps))
taken = []
for _ in range(rounds + 2):
    begin = time.monotonic()
    subprocess.run(command, check=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    taken.append((time.monotonic() - begin) * 1000)
print(json.dumps(taken[2:]))
"""


def measure_containers(say: Say, quick: bool) -> list[Figure]:
    if lacking := find_lacking():
        return [Figure(GROUP, "containers", None, "", "", None, f"NOT VERIFIED: needs {', '.join(lacking)}")]
    with installation() as steelyard:
        image = _make_image(steelyard.folder)
        figures = [*_measure_start(steelyard, image, say, 10 if quick else 60), _measure_memory(steelyard, image)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        return [*figures, _measure_unpack(folder, say, 1 if quick else 5), _measure_second(folder, say, 20 if quick else 200)]


def find_lacking() -> list[str]:
    return [name for name in NEEDED if shutil.which(name) is None] + ([] if os.geteuid() == 0 else ["root"])


def _make_image(folder: Path, files: int = 0) -> str:
    """A layout with busybox, and files of random bytes beside it."""
    root = folder / f"root-{files}"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("true", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    for at in range(files):
        path = root / f"data/{at % 50}/{at}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(FILE_BYTES // 2) + bytes(FILE_BYTES // 2))
    return make_layout(folder, root)


def make_layout(folder: Path, root: Path) -> str:
    """The reference of an image with the files of `root` in one layer."""
    layout = folder / f"layout-{root.name}"
    for command in (
        ["init", "--layout", str(layout)],
        ["new", "--image", f"{layout}:x"],
        ["insert", "--image", f"{layout}:x", str(root), "/"],
    ):
        subprocess.run(["umoci", *command], check=True, capture_output=True)
    subprocess.run(["chmod", "-R", "a+rX", str(layout)], check=True)
    return f"oci:{layout}:x"


def _measure_start(steelyard: Installation, image: str, say: Say, rounds: int) -> list[Figure]:
    """A job in a container and one without, in turns; then crun alone with the bundle of the former."""
    taken: dict[str, list[float]] = {"": [], image: []}
    for at in range(rounds + 2):
        say(f"start {at}/{rounds}")
        for where in taken:
            argv = ["/bin/true"] if where else [shutil.which("true") or "true"]
            begin = time.monotonic()
            job = steelyard.api("POST", "/v1/jobs", {"spec": {"name": "true", "argv": argv, "cwd": "/", "image": where}})["id"]
            while not steelyard.api("GET", f"/v1/jobs/{job}/logs?wait_s=10")["ended"]:
                continue
            if at >= 2:
                taken[where].append((time.monotonic() - begin) * 1000)
    alone = crun_alone(steelyard, image, rounds)
    adds = statistics.median(taken[image]) - statistics.median(taken[""])
    ratio = adds / statistics.median(alone)
    more = {
        "job in a container, p50 (ms)": statistics.median(taken[image]),
        "job on the machine, p50 (ms)": statistics.median(taken[""]),
        "crun alone, p50 (ms)": statistics.median(alone),
    }
    what = "What a container of a cached image adds to `true` as a job, against `crun run` alone on its bundle, already mounted."
    return [
        Figure("container start", "start of a cached image, against crun alone", ratio, "x", "<= 1.5 x", ratio <= 1.5, what, more)
    ]


def crun_alone(steelyard: Installation, image: str, rounds: int) -> list[float]:
    """ms of each `crun run` of `true` on the bundle of a job with that image."""
    job, pid, bundle = _start_sleeper(steelyard, image)
    config = json.loads((bundle / "config.json").read_text())
    copy = steelyard.folder / "alone"
    (copy / "fs").mkdir(parents=True)
    config["process"]["args"] = ["/bin/true"]
    config["root"]["path"] = f"{copy}/fs/rootfs"
    text = json.dumps(config).replace(f"{bundle}/fs", f"{copy}/fs")
    (copy / "config.json").write_text(text)
    digest = json.loads((bundle / "made.json").read_text())["image"]
    lower = steelyard.folder / "home/images/roots" / digest / "rootfs"
    first = lower.stat().st_uid
    maps = [
        [[first if line["containerID"] == 0 else first + line["containerID"], line["hostID"], line["size"]] for line in lines]
        for lines in (config["linux"]["uidMappings"], config["linux"]["gidMappings"])
    ]
    command = ["crun", "--cgroup-manager=disabled", "--root", str(copy / "state"), "run", "--bundle", str(copy), "alone"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(lower), f"{copy}/fs", json.dumps(maps), json.dumps(command), str(rounds)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert pid
    steelyard.cli("stop", job)
    return json.loads(done.stdout)


def _start_sleeper(steelyard: Installation, image: str) -> tuple[str, int, Path]:
    """(job, pid of its crun, its bundle), once the container runs."""
    spec = {"name": "sleep", "argv": ["/bin/sleep", "1000"], "cwd": "/", "image": image, "resources": {"cpus": 0.25}}
    job = steelyard.api("POST", "/v1/jobs", {"spec": spec})["id"]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/comm"):
            try:
                if path.read_text().strip() == "sleep" and f"/{job}.1\n" in (path.parent / "cgroup").read_text():
                    pid = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
                    argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    return job, pid, Path(argv[argv.index("--bundle") + 1])
            except (OSError, ValueError):
                continue
        time.sleep(0.05)
    raise RuntimeError(f"{job} did not start")


def _measure_memory(steelyard: Installation, image: str) -> Figure:
    sleepers = [_start_sleeper(steelyard, image) for _ in range(4)]
    seen = [shares.proportional / 1e6 for _, pid, _ in sleepers if (shares := observe_memory(pid)) is not None]
    for job, _, _ in sleepers:
        steelyard.cli("stop", job)
    size = statistics.mean(seen)
    what = "Proportional memory of crun, which waits beside the container's processes; the mean of four."
    return Figure("container memory", "an idle container, beyond its processes", size, "MB", "<= 2 MB", size <= 2, what)


def _measure_unpack(folder: Path, say: Say, rounds: int) -> Figure:
    """Fetching is not in it: the store is asked to unpack what it has fetched, and umoci the same layout."""
    image = _make_image(folder, FILES)
    layout = image.removeprefix("oci:")
    ours: list[float] = []
    theirs: list[float] = []
    for at in range(rounds + 1):
        say(f"unpack {at}/{rounds}")
        store = _TimedStore(folder / f"images-{at}", lambda: ())
        store.ensure(parse_image(image), (65534, 65534), "bench")
        begin = time.monotonic()
        subprocess.run(
            ["umoci", "raw", "unpack", "--image", layout, str(folder / f"umoci-{at}")], check=True, capture_output=True
        )
        if at:
            ours.append(store.unpacked_s)
            theirs.append(time.monotonic() - begin)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    more = {"ours, p50 (s)": statistics.median(ours), "umoci alone, p50 (s)": statistics.median(theirs)}
    what = f"{FILES} files of {FILE_BYTES >> 10} KiB in one layer: jail, count and umoci, against umoci alone."
    return Figure("container unpack", "unpacking an image, against umoci alone", ratio, "x", "<= 1.3 x", ratio <= 1.3, what, more)


def _measure_second(folder: Path, say: Say, rounds: int) -> Figure:
    """What the agent does for an image before it starts anything on it. Every round is another user's first time."""
    image = parse_image(_make_image(folder, 300))
    containers = Containers(folder / "run", folder / "images-shared", "bench")
    images = ContainerImages(containers, Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, 65534, 65534, "root", 0))

    async def get(uid: int) -> tuple[float, float]:
        begin = time.monotonic()
        found = await images.bring(image, Owner(f"user{uid}", uid), (uid, uid))
        got = time.monotonic()
        containers.ids(found, (uid, uid))
        return (got - begin) * 1000, (time.monotonic() - got) * 1000

    async def measure() -> tuple[float, list[tuple[float, float]]]:
        first, _ = await get(50_000)
        say(f"second users of an image: {rounds}")
        return first, [await get(50_001 + at) for at in range(rounds)]

    first, taken = asyncio.run(measure())
    middle = statistics.median(got for got, _ in taken)
    what = (
        "Until a user has an image that another one fetched: their right to read it is looked at, and it is found. The "
        "image is one in a folder. Nothing is fetched, copied or unpacked."
    )
    more = {
        "the first user, for whom it is fetched and unpacked (ms)": first,
        "max (ms)": max(got for got, _ in taken),
        "a user's range of ids, once for all images, p50 (ms)": statistics.median(ids for _, ids in taken),
    }
    return Figure(
        "container second user", "the second user of an image gets it", middle, "ms", "<= 5 ms", middle <= 5, what, more
    )


class _TimedStore(ImageStore):
    unpacked_s = 0.0

    def _unpack(self, described):  # type: ignore[no-untyped-def]
        begin = time.monotonic()
        try:
            return super()._unpack(described)
        finally:
            self.unpacked_s = time.monotonic() - begin
