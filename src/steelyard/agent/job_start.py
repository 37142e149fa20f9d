"""How is an attempt started, all of its processes or none?

Files, environment, settings of the machine and baselines of devices come first, then intents and cgroups of all processes, then
the processes, in the order of ranks. A part of a gang on several machines waits for the others while its intents are written, and
after that. Whoever calls kills what runs when any of it fails. Never decides where anything runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from steelyard.agent.attempt import ATTEMPT, FIRST, RANK, RANKS, WAITS, Attempt, Member, explain_limit
from steelyard.agent.code import ensure_code
from steelyard.agent.device_proof import shares_by_mps
from steelyard.agent.devices import DeviceKeeper, devices_of
from steelyard.agent.holdings import Holdings
from steelyard.agent.home_images import HomeImages
from steelyard.agent.identity import PATH, choose_ids, explain_start, make_env
from steelyard.agent.images import MISSING, enter_job, start_builder
from steelyard.agent.job_container import STOPPED, JobContainers
from steelyard.agent.job_files import JobFiles, find_ports
from steelyard.agent.mpi_steps import MpiSteps
from steelyard.agent.presence import GONE, Presence
from steelyard.agent.reconcile import RUNNING, watches_beats
from steelyard.agent.secrets import WorkSecrets
from steelyard.agent.timing import TimingKeeper
from steelyard.config import Paths, Settings
from steelyard.errors import EdgeFailed, SteelyardError
from steelyard.host.as_user import find_newest
from steelyard.lifecycle.environment import make_environment
from steelyard.lifecycle.launch import Facts, Launch, list_ports, make_launches, ports_wanted
from steelyard.lifecycle.mounts import make_variables, to_machine, to_workload
from steelyard.lifecycle.slurm_environment import add_slurm, is_told, make_slurm_environment
from steelyard.model.cdi import DeviceEdits
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.runtime import Wanted
from steelyard.runtime.process import ProcessRuntime
from steelyard.wire.agent import AssignedJob
from steelyard.wire.spawn import Outputs

KIND = "job"
#: code of a start that was broken off for a function that woke
PREEMPTED = str(Reason.PREEMPTED)
#: how a gang on one machine meets
LOOPBACK = "127.0.0.1"

Ids = tuple[int, int] | None


class JobStarter:
    """`kept_cpus` (common ones that no function lends) and `taken_ports` say what is so at that moment; `share_cpus` brings the
    common cpuset in line; `step_soon` has attempts looked at, `changed` says that there is something to report."""

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        runtime: ProcessRuntime,
        files: JobFiles,
        timing: TimingKeeper,
        devices: DeviceKeeper,
        presence: Presence,
        holdings: Holdings,
        share_cpus: Callable[[], None],
        kept_cpus: Callable[[], tuple[int, ...]],
        taken_ports: Callable[[], Collection[range]],
        step_soon: Callable[[], None],
        changed: Callable[[], None],
        slurm_bin: str,
        containers: JobContainers,
        paths: Paths,
        steps: MpiSteps,
    ) -> None:
        self._steps = steps
        self._paths, self._images = paths, paths.environments
        self._settings, self._machine, self._runtime, self._files = settings, machine, runtime, files
        self._timing, self._devices, self._presence = timing, devices, presence
        self._holdings = holdings
        self._share_cpus, self._kept_cpus, self._taken_ports = share_cpus, kept_cpus, taken_ports
        self._step_soon, self._changed, self._slurm_bin = step_soon, changed, slurm_bin
        self._containers, self._home_images = containers, HomeImages(paths, settings)

    def ids(self, job: AssignedJob) -> Ids:
        return choose_ids(job.owner, job.spec.as_root, self._settings, os.geteuid())

    async def start(self, job: AssignedJob, attempt: Attempt) -> None:
        """All of it runs afterwards, or has ended already; a rank that ended badly meanwhile leaves the rest unstarted. Raises
        SteelyardError when something failed: whatever runs then has to be ended."""
        owner = ids = self.ids(job)
        await self._bring_shared(job, ids)
        image = await self._containers.fetch(job, attempt, owner, self._holdings.secrets) if job.spec.contained else None
        if image is not None and owner is not None:
            ids = self._containers.ids(job.spec, image, owner)
        brought = await self._bring_files(job)
        inside = [DeviceEdits() if image is None else await self._containers.edits(each.plan) for each in attempt.members]
        attempt.mps = shares_by_mps(job.plan)
        self._find_ports(job, attempt)
        given = [await self._secrets(job, member, ids).variables() for member in attempt.members]
        outputs = Outputs(job.spec.stdout, job.spec.stderr, job.spec.truncate_output)
        if job.spec.stdout is not None or job.spec.stderr is not None:
            self._files.write_outputs(job.attempt, _seen_by_us(outputs, job), ids)
        self._presence.check(job.plan)
        if job.plan.cpus:
            self._share_cpus()
        self._timing.hold(job.attempt, job.plan)
        if devices_of(job.plan):
            await self._devices.note_start(job.plan)
        held = [await self._holdings.prepare(member.workload, job.spec.each, ids) for member in attempt.members]
        needed = [each.get("STEELYARD_SCRATCH", "") for each in held]
        mounts = None
        if image is None:
            mounts = await self._holdings.volumes.mounts(job.volumes, ids[0] if ids else os.geteuid(), needed)
        if job.place is not None and not attempt.members:  # another machine's srun starts what is to run here
            await self._prepare(job, attempt)
            attempt.note_elsewhere()
            return
        facts = await self._find_facts(job, attempt, ids)
        launches, envs = self._make_launches(job, attempt, ids, facts, given, held)
        port = await self._prepare(job, attempt)
        if port != attempt.ports.start:
            facts = msgspec.structs.replace(facts, port=port)
            launches, envs = self._make_launches(job, attempt, ids, facts, given, held)
        for member, launch, env, scratch, edits in zip(attempt.members, launches, envs, needed, inside, strict=True):
            if attempt.broke_with is not None:
                member.phase = "not-started"
                continue
            if attempt.kill_at_ns is not None:
                raise EdgeFailed(explain_limit(Reason.PREEMPTED, job.spec, attempt.gives_way_to), code=PREEMPTED)
            attempt.launched = True
            self._holdings.note_start(job.attempt, member.workload, member.plan)
            argv, cwd, rootfs, console = launch.argv, job.spec.cwd, None, None
            if image is not None and owner is not None:
                outputs = _seen_by_us(outputs, job)  # opened before any volume is mounted
                folders = self._folders(job, member, scratch)
                told = image, launch, env, owner, folders, edits, self._slurm_bin, brought
                argv, rootfs = self._containers.make(job, member, *told)
                env, cwd, console = {"PATH": PATH}, "/", self._containers.console(member.workload)  # crun's own: it is root
            with self._holdings.terminals.made(member.workload, job.spec.terminal, ids, console) as terminal:
                handle = await self._runtime.launch(
                    member.workload,
                    argv=argv,
                    env=env,
                    cwd=cwd,
                    uid=ids[0] if ids else None,
                    gid=ids[1] if ids else None,
                    # of all that write one file, the first alone may empty it
                    outputs=outputs if _is_first(job, member) else Outputs(outputs.stdout, outputs.stderr),
                    rootfs=rootfs,
                    mounts=mounts,
                    terminal=terminal,
                )
            member.handle = handle
            if member.phase == "starting":  # a short one may have ended already
                member.phase = RUNNING

    def _folders(self, job: AssignedJob, member: Member, scratch: str) -> tuple[str, ...]:
        """That were made for it, and are seen inside a container."""
        files = any(use.as_files for use in job.spec.secrets)
        secrets = self._holdings.secrets.path(member.workload) if files else ""
        return str(self._files.folder(job.attempt)), scratch, secrets

    async def _bring_shared(self, job: AssignedJob, ids: Ids) -> None:
        """Its volumes and environment are this machine's then, also where that is of a pool. Raises EdgeFailed."""
        if job.volumes:
            await self._holdings.volumes.check_reach(job.volumes)
        if job.spec.image and not job.spec.contained:
            await self._home_images.bring_environment(job.owner, job.spec.image, ids)

    async def _bring_files(self, job: AssignedJob) -> str:
        """The folder of what a step of a build brings along; "" without. Raises EdgeFailed."""
        if job.spec.makes is None or not job.spec.makes.files:
            return ""
        return str(await ensure_code(self._paths, self._settings, job.spec.makes.files))

    def _find_ports(self, job: AssignedJob, attempt: Attempt) -> None:
        """On the machine of rank 0, where the others come to."""
        count = ports_wanted(job.spec.gang)
        if count and (job.place is None or not job.place.node):
            attempt.ports = find_ports(list_ports(job.attempt, count), count, self._taken_ports())

    async def _prepare(self, job: AssignedJob, attempt: Attempt) -> int:
        """Intents and control groups of all processes. Returns the port at which ranks meet: on several machines once all
        are prepared, and intents are written while the server finds that out. Raises SteelyardError when it is to end before."""
        wanted = [Wanted(member.workload, member.plan, _labels(job, attempt, member)) for member in attempt.members]
        if job.place is None or job.place.port:  # all were prepared before this agent was started
            await self._runtime.prepare_all(wanted, kind=KIND)
            return attempt.ports.start if job.place is None else job.place.port
        going = attempt.going = asyncio.get_running_loop().create_future()
        attempt.prepared = True
        self._changed()
        self._step_soon()  # what it waits for may have come before
        try:
            await self._runtime.prepare_all(wanted, kind=KIND)
            port = await going
            await self._runtime.renew(attempt.workloads)
            return port
        except asyncio.CancelledError as err:
            if attempt.kill_at_ns is not None:
                raise EdgeFailed(explain_limit(Reason.PREEMPTED, job.spec, attempt.gives_way_to), code=PREEMPTED) from err
            raise EdgeFailed("Stopped before all its machines were prepared.", code=STOPPED) from err
        finally:
            attempt.going = None

    async def _find_facts(self, job: AssignedJob, attempt: Attempt, ids: Ids) -> Facts:
        """Everything that a launch has to be told is found out or made here, but for the port of a gang whose first machine is
        another one."""
        spec, gang, place = job.spec, job.spec.gang, job.place
        hosts = (self._machine.hostname,) if place is None else place.hosts
        return Facts(
            job=job.job,
            attempt=job.attempt,
            hosts=hosts,
            addresses=(LOOPBACK,) if place is None else place.addresses,
            port=attempt.ports.start,
            api_url=self._settings.api_url,
            ca_file=self._settings.tls_cert or "",
            restarts=job.restarts,
            checkpoint=await _find_checkpoint(job, ids) if spec.checkpoint_dir else "",
            script="" if spec.script is None else self._files.write_script(job.attempt, spec.script, ids),
            hostfile="" if gang is None else self._files.write_hostfile(job.attempt, gang, hosts),
            heartbeat=self._files.make_beat(job.attempt, ids) if watches_beats(spec) else "",
            token=job.token,
            array=job.array,
            own_cores=self._count_own_cores(job),
            root=os.geteuid() == 0 and ids == (0, 0),
            steps=self._steps.make(job, ids) if self._steps.covers(spec) else None,
        )

    def _make_launches(
        self,
        job: AssignedJob,
        attempt: Attempt,
        ids: Ids,
        facts: Facts,
        given: Sequence[Mapping[str, str]],
        held: Sequence[Mapping[str, str]],
    ) -> tuple[Sequence[Launch], Sequence[dict[str, str]]]:
        """With the environment of each. `given`: its secrets; `held`: variables of what it holds."""
        spec, place = job.spec, job.place
        launches = make_launches(spec, facts)
        if place is not None and not self._steps.covers(spec):
            each = len(launches) // len(place.hosts)
            launches = launches[place.node * each : (place.node + 1) * each]
        if spec.builds:
            argv, env = start_builder(self._images, job, ids)
            launches = (Launch(argv, launches[0].env | env),)
        if len(launches) != len(attempt.members):
            text = (
                f"{job.attempt} not started: it has {len(launches)} processes, and its plan has room for {len(attempt.members)}"
            )
            raise EdgeFailed(text, code="start-failed")
        envs = [
            self._make_env(job, member, launch, ids, secrets) | dict(holds)
            for member, launch, secrets, holds in zip(attempt.members, launches, given, held, strict=True)
        ]
        return launches, envs

    def _count_own_cores(self, job: AssignedJob) -> int:
        """Physical cores that nobody else may be given meanwhile: whole ones, or all common ones when it booked them all."""
        cpus = set(job.plan.cpus or self._kept_cpus())
        cores = sum(not cpus.isdisjoint(core.cpus) for core in self._machine.cores)
        return cores if job.plan.cpus or job.plan.share >= cores else 0

    def _secrets(self, job: AssignedJob, member: Member, ids: Ids) -> WorkSecrets:
        return WorkSecrets(self._holdings.secrets, job.owner, job.spec.secrets, member.workload, ids)

    def _make_env(self, job: AssignedJob, member: Member, launch: Launch, ids: Ids, secrets: Mapping[str, str]) -> dict[str, str]:
        """What one process is started with: the user's variables, over them its secrets, and who and where it is."""
        env = job.spec.env | dict(secrets)
        if not job.spec.contained:  # whose image says where programs and homes are
            env = make_env(enter_job(self._images, job, env), str(self._files.folder(job.attempt)), ids, job.owner)
        if job.spec.terminal is not None:
            env["TERM"] = job.spec.terminal.kind
        env = make_environment(member.plan, self._machine.topology, env, mps=shares_by_mps(member.plan)) | launch.env
        script = job.spec.script is not None
        env |= make_variables(job.volumes)
        if self._steps.covers(job.spec):
            return self._steps.clean(env)
        facts = self._slurm_facts(job, member, ids) if is_told(job.spec) else {}
        if script:
            facts["STEELYARD_STEPS"] = self._files.make_steps(job.attempt, ids)
        if job.spec.contained:  # whose image says where programs are: the stand-ins come in front of that
            return env | facts
        return add_slurm(env, self._slurm_bin, facts, script=script)

    def _slurm_facts(self, job: AssignedJob, member: Member, ids: Ids) -> dict[str, str]:
        tasks = 1 if job.spec.gang is None else job.spec.gang.tasks_per_node
        first = 0 if job.place is None else job.place.node * tasks
        rank = first if member.rank is None else member.rank
        topology = self._machine.topology
        return make_slurm_environment(
            job.job,
            job.spec,
            member.plan,
            hostname=self._machine.hostname,
            hosts=() if job.place is None else job.place.hosts,
            user=job.owner.user,
            array=job.array,
            restarts=job.restarts,
            rank=rank,
            local_rank=rank % tasks,
            node_rank=rank // tasks,
            uid=ids[0] if ids else None,
            gid=ids[1] if ids else None,
            gpu_indices={gpu.id: gpu.index for gpu in topology.gpus if gpu.index is not None} if topology else {},
        )


async def _find_checkpoint(job: AssignedJob, ids: Ids) -> str:
    """As the job will name it: it may be in a volume."""
    folder = to_machine(job.spec.checkpoint_dir or "", job.volumes)
    return to_workload(await asyncio.to_thread(find_newest, folder, ids), job.volumes)


def _seen_by_us(outputs: Outputs, job: AssignedJob) -> Outputs:
    """Where `logs` finds the files that the job opens."""
    paths = [None if path is None else to_machine(path, job.volumes) for path in (outputs.stdout, outputs.stderr)]
    return Outputs(*paths, truncate=outputs.truncate)


def _is_first(job: AssignedJob, member: Member) -> bool:
    return not member.rank and (job.place is None or not job.place.node)


def _labels(job: AssignedJob, attempt: Attempt, member: Member) -> dict[str, str]:
    waits = {} if job.place is None else {WAITS: "yes"}
    if member.rank is None:
        return waits
    first = attempt.members[0].rank or 0
    return {ATTEMPT: job.attempt, RANK: str(member.rank), RANKS: str(len(attempt.members)), FIRST: str(first), **waits}


def explain_failure(err: SteelyardError, job: AssignedJob, ids: Ids) -> tuple[Reason, str]:
    """Why an attempt was not started, and what its owner can do about it."""
    if err.code == GONE:
        return Reason.DEVICE_GONE, err.public
    if err.code in (STOPPED, PREEMPTED, MISSING):
        return Reason(err.code), err.public
    if err.detail == "output":
        advice = "That folder has to be there, and that user has to be allowed to write the file. Make it, or name another file."
        return Reason.START_FAILED, f"{err.public}. {advice}"
    if err.detail == "exec" and job.spec.script is not None:
        return (
            Reason.START_FAILED,
            f"{err.public}. Look at the script's first line: it names the program that runs it (#!/bin/sh).",
        )
    return Reason.START_FAILED, explain_start(err.public, ids, job.owner)
