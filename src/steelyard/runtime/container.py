"""How does a workload become a container? Its image is fetched, its bundle written, and crun started in its place by the spawner.

    <run>/containers/<workload>/config.json   what crun is told (`lifecycle/bundle.py`); root's alone, in memory: it has secrets
    <run>/containers/<workload>/made.json     what whoever comes later must know of it
    <run>/containers/<workload>/fs            where its files are mounted, in its own mount namespace alone
    <run>/containers/.crun/                   crun's own notes

crun stays as the parent of the container's first process: the workload's control group, session, logs, exit record and handle
are those of any process. crun's exit code is that of the container's first process, or 128 + its signal. It is started with
`/sys/fs/cgroup` hidden (the groups are ours, and crun refuses hybrid machines that it sees), so that runc is never needed.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import stat
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from steelyard.config import write_file
from steelyard.errors import EdgeFailed, Refused
from steelyard.lifecycle.bundle import NETWORK, Container, make_bundle, make_terminal
from steelyard.lifecycle.container_step import CAPABILITIES, DONE
from steelyard.lifecycle.debian import PROGRAM, TARGET
from steelyard.model.cdi import DeviceEdits
from steelyard.model.ids import WorkloadId
from steelyard.model.image import Image, ImageReference, UserIds, choose_argv
from steelyard.model.job import Terminal
from steelyard.model.mount import Bind
from steelyard.runtime.mount_calls import find_inside
from steelyard.runtime.oci import Tell, say_nothing
from steelyard.runtime.oci.fetch import missing
from steelyard.runtime.oci.programs import list_binds, make_root
from steelyard.runtime.oci.ranges import BUILD_IDS, BUILD_MAPS, make_maps, owner_range
from steelyard.runtime.oci.steps import StepMade
from steelyard.runtime.oci.store import ImageStore, RegistryLogin
from steelyard.runtime.rootfs import DEV, ROOT, SYS
from steelyard.wire.spawn import Rootfs

Ids = tuple[int, int]
TOOLS = ("skopeo", "umoci", "crun")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: the machine's own, for what uses the machine's network
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts")
_OWN_USERNS, _USERNS_MAX = Path("/proc/self/ns/user"), Path("/proc/sys/user/max_user_namespaces")
#: idmapped layers of an overlay
_KERNEL = (5, 19)
#: of glibc's loaders, most special first; where a folder is a link to another, both names do
_MACHINE = os.uname().machine
LIB_FOLDERS = (
    f"/usr/lib/{_MACHINE}-linux-gnu", f"/lib/{_MACHINE}-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib",
)  # fmt: skip
_CONFIG, _MADE, _FS, _PROCESS = "config.json", "made.json", "fs", "process.json"


class Made(msgspec.Struct, frozen=True):
    """What is known of a workload's container."""

    #: hex digest of its image
    image: str
    reference: str
    #: of the machine: whom its processes show as
    uid: int
    gid: int
    own_network: bool = False
    #: paths of its device files beside those that every container has; None in notes of earlier versions
    devices: tuple[str, ...] | None = None
    lock_memory: bool = False
    #: sentences for its proof
    notes: tuple[str, ...] = ()
    #: the image that it makes; "" of any other
    makes: str = ""


class Wanted(msgspec.Struct, frozen=True):
    """What a container is to run. `env` is over the image's; `argv` and `cwd` may be left to the image."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str = ""
    #: of what runs instead of the image's entry point: what the image must have for that
    interpreter: str = ""
    terminal: Terminal | None = None
    #: a folder that is brought in, in which programs are looked for first
    programs: str = ""
    own_network: bool = False
    #: whoever starts it is in that network already
    in_network: bool = False
    #: descriptors from 3 on that it is given
    fds: int = 0
    #: crun ends when it runs, and leaves its first process to whoever started crun
    detached: bool = False
    binds: tuple[Bind, ...] = ()
    #: for the devices that it was given
    edits: DeviceEdits = DeviceEdits()
    #: its files become that image of its owner's; it runs as root of ids that only images have, with what such a step may do
    step: StepMade | None = None


class Containers:
    """Of one home. `folder`: where crun is told of them; `images`: where their files are kept; `fetches`: images come from
    registries, and are unpacked here."""

    def __init__(self, folder: Path, images: Path, hostname: str, *, fetches: bool = True) -> None:
        self._needed = TOOLS if fetches else ("tar", "crun")
        self._folder = Path(os.path.realpath(folder))
        self._state, self._hostname = self._folder / ".crun", hostname
        self._images = images
        self._made: dict[WorkloadId, Made] | None = None
        #: where they were found, and the first ids of owners' ranges, which are given out for good
        self._tools: dict[str, str] = {}
        self._ranges: dict[int, int] = {}
        #: who sleeps, and will want its image again -> digest
        self._pinned: dict[str, str] = {}
        self.store = ImageStore(images, lambda: {*self._pinned.values(), *(made.image for made in self._all().values())})

    def check(self) -> None:
        """Can there be containers here? Raises Refused with what is missing; a weaker wall is never put up instead."""
        if os.geteuid() != 0:
            raise _impossible("root: start Steelyard as root, or run it without --image")
        for tool in self._needed:
            if not os.access(self._tools.get(tool, ""), os.X_OK):
                if (found := shutil.which(tool)) is None:
                    raise missing(tool)
                self._tools[tool] = found
        if not _OWN_USERNS.exists() or (_USERNS_MAX.exists() and _USERNS_MAX.read_text().strip() == "0"):
            raise _impossible(
                "user namespaces, which are switched off here: set user.max_user_namespaces (sysctl) to more than 0"
            )
        release = os.uname().release
        if tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()) < _KERNEL:
            raise _impossible(f"Linux {_KERNEL[0]}.{_KERNEL[1]} or later, and this is {release}")

    def check_bare(self) -> None:
        """Can an image be made here that has none below it? Raises Refused with what is missing."""
        self.check()
        if shutil.which(PROGRAM) is None:
            raise Refused(
                f"Images of Debian's packages need {PROGRAM}, which is not installed here. Nothing was started. Install it: "
                f"apt-get install {PROGRAM}; or begin with an image that is there: Image.from_registry(...).",
                code="container-tools-missing",
            )

    def sweep(self) -> None:
        """In the background: what an agent before this one was killed over."""
        steps = [made.makes for made in self._all().values()]
        threading.Thread(target=self.store.sweep, args=(steps,), daemon=True).start()

    def fetch(
        self,
        reference: ImageReference,
        ids: Ids,
        stamp: str,
        tell: Tell = say_nothing,
        login: RegistryLogin | None = None,
    ) -> Image:
        """Blocks until the image is here, see `ImageStore.ensure`."""
        self.check()
        return self.store.ensure(reference, ids, stamp, tell, login)

    def users(self, digest: str) -> list[str]:
        """What runs on that image, and who sleeps on it."""
        running = {str(workload) for workload, made in self._all().items() if made.image == digest}
        return sorted(running | {name for name, pinned in self._pinned.items() if pinned == digest})

    def find(self, reference: ImageReference, whose: str) -> Image:
        """As it is here, without a look at where it comes from. Blocks a little. Raises EdgeFailed."""
        self.check()
        return self.store.find(reference, whose)

    def pin(self, name: str, image: Image | None) -> None:
        """It stays here until another one, or none, is pinned by that name."""
        if image is None:
            self._pinned.pop(name, None)
        else:
            self._pinned[name] = image.digest

    def ids(self, image: Image, owner: Ids) -> Ids:
        """(uid, gid) of the machine that the image's user is, when `owner` runs it."""
        first, wanted = self._range(owner[0]), image.ids
        return (owner[0] if wanted.uid == 0 else first + wanted.uid, owner[1] if wanted.gid == 0 else first + wanted.gid)

    def _range(self, uid: int) -> int:
        if uid not in self._ranges:
            self._ranges[uid] = owner_range(self._images, uid)
        return self._ranges[uid]

    def make(self, workload: WorkloadId, image: Image, wanted: Wanted, owner: Ids) -> tuple[tuple[str, ...], Rootfs]:
        """Write its bundle: the command that starts it, and what is mounted for that. Raises Refused or EdgeFailed."""
        bare = wanted.step is not None and not wanted.step.below
        folder, root = self._folder / workload, make_root(self._images) if bare else self.store.root(image.digest)
        argv = wanted.argv if wanted.interpreter else choose_argv(image, wanted.argv)
        edits = wanted.edits
        env = variables(image, edits.env | wanted.env)
        if not bare:
            _check_program(root, wanted.interpreter or argv[0], env["PATH"], wanted.cwd or image.cwd or "/", image.reference)
        if wanted.programs:
            env["PATH"] = f"{wanted.programs}:{env['PATH']}"
        first = self._range(owner[0])
        (uids, disk_uids), (gids, disk_gids) = make_maps(first, owner[0]), make_maps(first, owner[1])
        ids, binds, disk = image.ids, wanted.binds, ""
        if wanted.step is not None:
            uids, disk_uids = BUILD_MAPS
            (gids, disk_gids), ids = BUILD_MAPS, UserIds(home=image.ids.home)
            disk = str(self.store.begin_step(wanted.step))
            binds = (*binds, Bind(f"{disk}/done", DONE))
            if bare:
                binds, disk = (*list_binds(), *binds, Bind(f"{disk}/upper", TARGET)), ""
        files = () if wanted.own_network else tuple(Bind(name, name, True) for name in _NETWORK_FILES if os.path.isfile(name))
        container = Container(
            root=f"{folder}/{_FS}/{ROOT}", sys=f"{folder}/{_FS}/{SYS}", nodes=f"{folder}/{_FS}/{DEV}",
            argv=argv, env=env, cwd=wanted.cwd or image.cwd,
            uid=ids.uid, gid=ids.gid, groups=tuple(dict.fromkeys((*ids.groups, *edits.groups))),
            uids=uids, gids=gids,
            hostname=workload[:64] if wanted.own_network else self._hostname, machine=os.uname().machine,
            own_network=wanted.own_network and not wanted.in_network, devices=edits.nodes,
            binds=(*files, *edits.binds, *place_libraries(str(root), edits.libraries, edits.binds), *binds),
            capabilities=CAPABILITIES if wanted.step is not None else (),
            terminal=wanted.terminal,
        )  # fmt: skip
        uid, gid = self.ids(image, owner) if wanted.step is None else BUILD_IDS
        made = Made(
            image.digest,
            image.reference,
            uid,
            gid,
            wanted.own_network,
            tuple(sorted(node.path for node in edits.nodes)),
            edits.lock_memory,
            edits.notes,
            "" if wanted.step is None else wanted.step.image.digest,
        )
        try:
            (folder / _FS).mkdir(parents=True, exist_ok=True, mode=0o711)
            for each in (self._folder, folder):
                each.chmod(0o711)
            self._state.mkdir(exist_ok=True, mode=0o700)
            # read by crun alone, which is started after it: nobody ever finds half of it
            with open(os.open(folder / _CONFIG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(make_bundle(container)))
            write_file(folder / _MADE, msgspec.json.encode(made), in_memory=True)
        except OSError as err:
            raise EdgeFailed(f"{folder} could not be written: {err.strerror}. Nothing was started.", code="start-failed") from err
        self._all()[workload] = made
        options = (*self._options(workload, wanted.fds, detached=wanted.detached), *self._brings(workload, wanted.terminal))
        command = (*self._crun(), "run", *options, "--bundle", str(folder), workload)
        leaves = self._pid_file(workload) if wanted.detached else ""
        rootfs = Rootfs(
            str(root), f"{folder}/{_FS}", disk=disk, uids=disk_uids, gids=disk_gids, owner=owner, devices=edits.nodes,
            lock_memory=edits.lock_memory, leaves=leaves,
        )  # fmt: skip
        return command, rootfs

    def enter(
        self,
        workload: WorkloadId,
        name: str,
        argv: tuple[str, ...],
        terminal: Terminal | None = None,
        *,
        pid: int = 0,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
    ) -> tuple[tuple[str, ...], Rootfs]:
        """The command that runs another one inside of it, behind the same walls; `name`: it has of those there. Of a terminal our
        side is sent to `console`. `pid`: of a process inside. `env`, and `cwd` with it: instead of those of its first process."""
        folder, made = self._folder / workload, self.made(workload)
        try:
            config = msgspec.json.decode((folder / _CONFIG).read_bytes())
            process = config["process"]
            path = folder / f"exec-{name}.json"
            if env is not None:
                process |= {"env": [f"{key}={value}" for key, value in env.items()], "cwd": cwd or "/"}
            if pid and made is not None:
                _check_inside(pid, argv[0], process, made.reference)
            process |= {"args": list(argv), **make_terminal(process["env"], terminal)}
            write_file(path, msgspec.json.encode(process), in_memory=True)
        except OSError as err:
            raise EdgeFailed(f"{folder} can't be used: {err.strerror}. Nothing was started.", code="start-failed") from err
        locks = made is not None and made.lock_memory
        brings = self._brings(workload, terminal, name)
        # one that was started in a network of its own knows nothing of it, and would let others into ours
        told = any(each["type"] == NETWORK for each in config["linux"]["namespaces"])
        network = pid if made is not None and made.own_network and not told else 0
        rootfs = Rootfs("", "", lock_memory=locks, network=network)
        return (*self._crun(), "exec", *brings, "--process", str(path), workload), rootfs

    def leave(self, workload: WorkloadId, name: str) -> None:
        """What ran inside by that name has ended."""
        for left in (self._folder / workload / f"exec-{name}.json", self.console(workload, name)):
            left.unlink(missing_ok=True)

    def _brings(self, workload: WorkloadId, terminal: Terminal | None, name: str = "0") -> tuple[str, ...]:
        return () if terminal is None else ("--console-socket", str(self.console(workload, name)))

    def console(self, workload: WorkloadId, name: str = "0") -> Path:
        """Where crun brings the terminal of a process of it: the first one's (0), or another's; the socket is its reader's."""
        return self._folder / workload / f"console-{name}"

    def around(self, pid: int) -> WorkloadId | None:
        """The container in which a process was forked that is not its first one's; None: none of those that are told here."""
        wanted = _pid_namespace(str(pid))
        for path in self._folder.glob("*/pid"):
            # what was brought into one has such a file too, but no configuration of its own
            if (path.parent / _CONFIG).exists() and wanted and _pid_namespace(path.read_text()) == wanted:
                return WorkloadId(path.parent.name)
        return None

    def enter_for_good(
        self, workload: WorkloadId, box: WorkloadId, argv: Sequence[str], env: Mapping[str, str], fds: int
    ) -> tuple[tuple[str, ...], Rootfs]:
        """The command that starts a workload in the container of another one, behind the same walls, and leaves it to whoever
        started the command. `env` is all that it is given. Raises EdgeFailed."""
        folder, made = self._folder / workload, self._all()[box]
        try:
            process = msgspec.json.decode((self._folder / box / _CONFIG).read_bytes())["process"]
            told = {**process, "args": list(argv), "env": [f"{name}={value}" for name, value in env.items()], "cwd": "/"}
            folder.mkdir(exist_ok=True, mode=0o711)
            write_file(folder / _PROCESS, msgspec.json.encode(told))
            write_file(folder / _MADE, msgspec.json.encode(made))
        except OSError as err:
            raise EdgeFailed(f"{folder} can't be written: {err.strerror}. Nothing was started.", code="start-failed") from err
        self._all()[workload] = made
        options = self._options(workload, fds, detached=True)
        return (*self._crun(), "exec", *options, "--process", str(folder / _PROCESS), box), Rootfs(
            "", "", leaves=self._pid_file(workload)
        )

    def _pid_file(self, workload: WorkloadId) -> str:
        return str(self._folder / workload / "pid")

    def _options(self, workload: WorkloadId, fds: int, *, detached: bool) -> tuple[str, ...]:
        passed = ("--preserve-fds", str(fds)) if fds else ()
        return (*passed, *(("--detach", "--pid-file", self._pid_file(workload)) if detached else ()))

    def made(self, workload: WorkloadId) -> Made | None:
        """None: it is no container."""
        return self._all().get(workload)

    def forget(self, workload: WorkloadId) -> None:
        """Nothing of it runs any more."""
        if (made := self._all().pop(workload, None)) is not None:
            if made.makes:
                self.store.drop_step(made.makes)
            shutil.rmtree(self._state / workload, ignore_errors=True)
            shutil.rmtree(self._folder / workload, ignore_errors=True)

    def _crun(self) -> tuple[str, ...]:
        return ("crun", "--cgroup-manager=disabled", "--root", str(self._state))

    def _all(self) -> dict[WorkloadId, Made]:
        """Read once: whoever was agent before has left them."""
        if self._made is None:
            self._made = {}
            for path in self._folder.glob(f"*/{_MADE}"):
                with contextlib.suppress(msgspec.MsgspecError):  # cut off by the end of the machine, which ended it too
                    self._made[WorkloadId(path.parent.name)] = msgspec.json.decode(path.read_bytes(), type=Made)
        return self._made


def variables(image: Image, env: Mapping[str, str]) -> dict[str, str]:
    """`env` over the image's own."""
    return {"PATH": DEFAULT_PATH, "HOME": image.ids.home} | image.env | dict(env)


def place_libraries(root: str, libraries: Mapping[str, str], bound: Collection[Bind]) -> list[Bind]:
    """Where the loader of the image below `root` finds them without being told: its own libc lies there."""
    for folder in LIB_FOLDERS if libraries else ():
        try:
            find_inside(root, f"{folder}/libc.so.6")
        except OSError:
            continue
        taken = {each.target for each in bound}
        return [
            Bind(source, path, True)
            for name, source in sorted(libraries.items())
            if (path := posixpath.join(folder, name)) not in taken
        ]
    return []


def _pid_namespace(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid.strip()}/ns/pid")
    except OSError:
        return ""


def _impossible(needs: str) -> Refused:
    return Refused(f"Containers need {needs}. Nothing was started.", code="no-containers-here")


def _check_inside(pid: int, program: str, process: Mapping[str, Any], reference: str) -> None:
    """As `_check_program`, of a container that runs, with what was written there since; `pid`: of a process, maybe inside."""
    path = next((line.partition("=")[2] for line in process["env"] if line.startswith("PATH=")), DEFAULT_PATH)
    with contextlib.suppress(OSError):  # it ended meanwhile
        if os.readlink(f"/proc/{pid}/ns/user") != os.readlink(_OWN_USERNS):
            _check_program(Path(f"/proc/{pid}/root"), program, path, process["cwd"], reference)


def _check_program(root: Path, program: str, path: str, cwd: str, reference: str) -> None:
    """crun would say it too, but in the job's output and after it was called started."""
    if "/" in program:
        places = [program if program.startswith("/") else f"{cwd}/{program}"]
    else:
        places = [f"{folder}/{program}" for folder in path.split(":") if folder.startswith("/")]
    for place in places:
        try:
            mode = find_inside(str(root), place)
        except OSError:
            continue
        if stat.S_ISREG(mode) and mode & 0o111:
            return
    where = "" if "/" in program else f" in its PATH ({path})"
    raise Refused(
        f"The image {reference} has no program {program!r}{where}. Nothing was started. Name one that is in the image.",
        code="no-such-program",
    )
