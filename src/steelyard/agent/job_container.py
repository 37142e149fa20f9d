"""What becomes of a job that names an image? Its image is fetched before anything else of it is made, each of its processes is
started inside a container, and its proof tells which walls the kernel really put around it.

The machine's folders are not inside but for those that Steelyard made for the job. Never waits for a registry in the agent's
loop: fetching is a thread's work, and a job that is stopped meanwhile does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from steelyard.agent.attempt import Attempt, Member, MemberEnd
from steelyard.agent.container_images import ContainerImages, find_login
from steelyard.agent.container_proof import asked_walls, explain_container, got_walls
from steelyard.agent.device_grants import DeviceGrants
from steelyard.agent.images import SITE_VARIABLES
from steelyard.agent.job_files import JobFiles
from steelyard.agent.secrets import SecretKeeper
from steelyard.errors import EdgeFailed, Refused
from steelyard.host import Cgroups
from steelyard.host.volumes import check_source
from steelyard.lifecycle.container_step import FILES
from steelyard.lifecycle.launch import Launch
from steelyard.lifecycle.proof import CONTAINER_TIER
from steelyard.lifecycle.wants_root import explain_root
from steelyard.model.cdi import DeviceEdits
from steelyard.model.ids import WorkloadId
from steelyard.model.image import Image, ImageSource, parse_image
from steelyard.model.job import ImageStep, JobSpec, Owner, Plan
from steelyard.model.mount import Bind, MountedVolume
from steelyard.model.reason import Reason
from steelyard.runtime.container import Containers, Wanted
from steelyard.runtime.deaf import end_deaf
from steelyard.runtime.oci.ranges import BUILD_IDS
from steelyard.runtime.oci.steps import StepMade
from steelyard.wire.agent import AssignedJob
from steelyard.wire.spawn import Exited, Rootfs

Ids = tuple[int, int]
#: code of a start that was given up because nobody wants it any more
STOPPED = str(Reason.STOPPED_BY_USER)
_PIP_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
#: whom the site trusts, as a file; seen inside of a step at a place of its own
_CERT_VARIABLES, CERTS = ("PIP_CERT", "SSL_CERT_FILE"), "/run/steelyard/certs.pem"


class JobContainers:
    def __init__(self, containers: Containers, images: ContainerImages, grants: DeviceGrants) -> None:
        self._containers, self._images, self._grants = containers, images, grants

    async def fetch(self, job: AssignedJob, attempt: Attempt, owner: Ids | None, secrets: SecretKeeper) -> Image:
        """Raises SteelyardError; nothing of the job is there then."""
        if owner is None:
            self._containers.check()  # which refuses: only root makes containers
            raise Refused("Containers need root. Nothing was started.", code="no-containers-here")
        if job.spec.makes is not None and not job.spec.makes.below:
            self._containers.check_bare()
            return Image("", job.spec.image)
        login = await find_login(secrets, job.owner, job.spec.secrets)
        task = asyncio.ensure_future(self._images.bring(parse_image(job.spec.image), job.owner, owner, login))
        attempt.fetching = task
        try:
            return await task
        except asyncio.CancelledError:
            raise EdgeFailed("Stopped before its image was there.", code=STOPPED) from None
        finally:
            attempt.fetching = None

    def ids(self, spec: JobSpec, image: Image, owner: Ids) -> Ids:
        """Of the machine, whom its processes show as."""
        return BUILD_IDS if spec.makes is not None else self._containers.ids(image, owner)

    async def edits(self, plan: Plan) -> DeviceEdits:
        """What its container needs for its devices. Raises Refused."""
        return await self._grants.edits(plan)

    def make(
        self,
        job: AssignedJob,
        member: Member,
        image: Image,
        launch: Launch,
        env: Mapping[str, str],
        owner: Ids,
        folders: Sequence[str],
        edits: DeviceEdits,
        slurm_bin: str,
        files: str,
    ) -> tuple[tuple[str, ...], Rootfs]:
        """`env`: what it is told beside the image's variables; `folders`: that Steelyard made for it. They are seen inside, where
        they are there; for a script also what its `srun` and the like need, by `slurm_bin`. Never taken from `env`, which is the
        user's to fill: crun mounts as root."""
        if job.spec.makes is not None:
            return self._make_step(job.spec, job.owner, job.spec.makes, member.workload, image, owner, files)
        read = [launch.env.get("STEELYARD_CA", ""), "" if job.spec.script is None else os.path.dirname(slurm_bin)]
        wanted = Wanted(
            argv=launch.argv,
            env=dict(env),
            cwd=job.spec.cwd,
            interpreter=_find_first(job.spec, launch),
            terminal=job.spec.terminal,
            programs="" if job.spec.script is None else slurm_bin,
            own_network=job.spec.own_network,
            binds=find_binds(folders, read, job.volumes),
            edits=edits,
        )
        return self._containers.make(member.workload, image, wanted, owner)

    def made_as(self, workload: WorkloadId) -> Ids | None:
        """Whom its processes show as on the machine; None: it is no container."""
        made = self._containers.made(workload)
        return None if made is None else (made.uid, made.gid)

    def _make_step(
        self, spec: JobSpec, owner: Owner, step: ImageStep, workload: WorkloadId, image: Image, ids: Ids, files: str
    ) -> tuple[tuple[str, ...], Rootfs]:
        """Nothing of Steelyard, and no token, is told to it: all that it is told may stay in the image."""
        if image.digest != step.below:
            raise Refused(
                f"The image {spec.image} is another one than when this build began. Nothing was started. Build it again.",
                code="image-changed",
            )
        made = msgspec.structs.replace(
            image, digest=step.id, reference=f"{ImageSource.BUILT.value}:{step.id}", env=image.env | step.env, blobs=()
        )
        if step.user:
            made = msgspec.structs.replace(made, user=step.user)
        if step.command:
            made = msgspec.structs.replace(made, entrypoint=(), command=step.command)
        binds = (Bind(files, FILES, True),) if files else ()
        trusted = next((path for name in _CERT_VARIABLES if os.path.isfile(path := os.environ.get(name, ""))), "")
        told = dict.fromkeys(_CERT_VARIABLES, CERTS) if trusted else {}
        if trusted:
            binds = (*binds, Bind(os.path.realpath(trusted), CERTS, True))
        wanted = Wanted(
            argv=spec.argv,
            env=_site_variables() | told | spec.env,
            interpreter="/bin/sh",
            binds=binds,
            step=StepMade(made, image.digest, str(owner.uid)),
        )
        return self._containers.make(workload, image, wanted, ids)

    def console(self, workload: WorkloadId) -> Path:
        """Where its terminal will be brought."""
        return self._containers.console(workload)

    def signal(self, workload: WorkloadId, signum: int, cgroups: Cgroups) -> None:
        """Its processes have been sent the signal: end the one that the kernel keeps it from."""
        if self._containers.made(workload) is not None:
            end_deaf(cgroups.pids(workload), signum)

    def read_exit(self, workload: WorkloadId, exited: Exited | None) -> Exited | None:
        """crun tells a signal as a shell would; a program that exits with such a code by itself reads the same."""
        code = None if exited is None else exited.exit_code
        if exited is None or code is None or not 128 < code <= 192 or self._containers.made(workload) is None:
            return exited
        return msgspec.structs.replace(exited, exit_code=None, signal=code - 128)

    def explain_exit(
        self, job: AssignedJob | None, workload: WorkloadId, end: MemberEnd, files: JobFiles, secrets: SecretKeeper
    ) -> MemberEnd:
        """With the step at which it expected to be root, where what it wrote says so."""
        made = self._containers.made(workload)
        # a step of a build is explained to whoever builds
        if end.reason is not Reason.EXITED_NONZERO or job is None or made is None or made.makes:
            return end
        with contextlib.suppress(EdgeFailed):
            said = next(filter(None, (explain_root(files.read_end(workload, stream)) for stream in ("stderr", "stdout"))), "")
            return msgspec.structs.replace(end, detail=secrets.clean(job.owner, job.spec.secrets, said))
        return end

    # -- the proof

    def inside(self, workload: WorkloadId, pids: tuple[int, ...]) -> tuple[int, ...]:
        """Without crun itself, which is ours: none before there is a container."""
        return pids if self._containers.made(workload) is None else inside_of(pids)

    def asked(self, workload: WorkloadId) -> dict[str, object]:
        made = self._containers.made(workload)
        return {} if made is None else {**asked_walls(made), "tier": None if made.makes else CONTAINER_TIER}

    def got(self, workload: WorkloadId, pids: tuple[int, ...]) -> dict[str, object]:
        made = self._containers.made(workload)
        return {} if made is None else got_walls(made, pids)

    def explain(self, workload: WorkloadId) -> tuple[str, ...]:
        made = self._containers.made(workload)
        return () if made is None else explain_container(made)


def inside_of(pids: Sequence[int]) -> tuple[int, ...]:
    """Those of a workload's processes that are in a container, without crun and a relay, which are ours."""
    return tuple(pid for pid in pids if _namespace(pid) != _namespace(os.getpid()))


def _site_variables() -> dict[str, str]:
    """How the site reaches package indexes: of our own environment, and not kept in the image."""
    return {name: os.environ[name] for name in (*SITE_VARIABLES, *_PIP_VARIABLES) if name in os.environ and "_FILE" not in name}


def _find_first(spec: JobSpec, launch: Launch) -> str:
    """What the image must have for a script or a terminal's program, which run instead of its entry point; "" for that."""
    if spec.script is not None:
        return find_interpreter(spec.script)
    return launch.argv[0] if spec.terminal is not None and launch.argv else ""


def find_interpreter(script: str) -> str:
    """What its first line names."""
    words = script.partition("\n")[0].removeprefix("#!").split()
    return words[0] if words else "/bin/sh"


def find_binds(folders: Sequence[str], read: Sequence[str], volumes: Sequence[MountedVolume]) -> tuple[Bind, ...]:
    """Volumes, and the rest at the same paths as outside; what is in `read` can't be written. Raises EdgeFailed."""
    for volume in volumes:
        if (wrong := check_source(volume)) is not None:
            raise EdgeFailed(f"Not started: {wrong}", code="start-failed", detail="volumes")
    return (
        *(Bind(folder, folder) for folder in folders if folder and os.path.isdir(folder)),
        *(Bind(path, path, True) for path in read if path),
        *(Bind(volume.source, volume.seen_at, volume.read_only) for volume in volumes),
    )


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return ""
