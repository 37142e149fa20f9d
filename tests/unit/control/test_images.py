"""The loop that judges images: rows follow what jobs and the machine say, what work needs stays, what is over the budget goes."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from steelyard.clock import VirtualClock
from steelyard.control import ASSIGNMENT
from steelyard.control.images import ImagesLoop, NodeImages, assign_images, find_users
from steelyard.control.live import LiveJobs, refresh
from steelyard.control.watch import Watch
from steelyard.lifecycle.image import name_layers
from steelyard.model.built_image import Image, ImageSeen, ImageSpec, ImageState, PipInstall, PythonBase
from steelyard.model.function import Function, FunctionSpec
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.store.memory import MemoryStore
from steelyard.wire.agent import AssignedImages, ImagesSeen

OWNER = Owner("ann", 1000)
SPEC = ImageSpec(PythonBase("3.11"), (PipInstall(("a",)),))
OTHER = replace(SPEC, steps=(PipInstall(("b",)),))


def make_image(spec: ImageSpec = SPEC, job: str = "j-000001", used_at: int = 1) -> Image:
    return Image(name_layers(spec)[-1], DEFAULT_PROJECT, OWNER, 1, spec, JobId(job), 1, used_at)


def make_job(id_: str, state: JobState, image: str = "") -> Job:
    return Job(JobId(id_), DEFAULT_PROJECT, OWNER, 1, 1, JobSpec("x", ("x",), "/", image=image), state, 0)


def node(*images: Image, budget_bytes: int = 1000) -> ImagesSeen:
    layers = tuple(ImageSeen(image.id, OWNER.uid, "3.11.2", 100, 100, 1) for image in images)
    return ImagesSeen(layers, budget_bytes)


class World:
    def __init__(self) -> None:
        self.store, self.live, self.node, self.clock = MemoryStore(), LiveJobs(), NodeImages(), VirtualClock()
        self.loop = ImagesLoop(self.store, self.clock, Watch(), self.live, self.node)

    def look(self) -> tuple[list[str], dict[str, Image]]:
        async def run() -> tuple[list[str], list[Image]]:
            await refresh(self.live, self.store)
            pokes = await self.loop.activate()
            return list(pokes), await self.store.read(lambda tx: tx.images())

        pokes, images = asyncio.run(run())
        return pokes, {image.id: image for image in images}

    def put(self, *things: Image | Job | Function) -> None:
        async def run() -> None:
            for thing in things:
                put = {Image: "put_image", Job: "put_job", Function: "put_function"}[type(thing)]
                await self.store.write(lambda tx, put=put, thing=thing: getattr(tx, put)(thing))

        asyncio.run(run())


def test_nothing_is_judged_before_the_machine_spoke() -> None:
    world, image = World(), make_image()
    world.put(image, make_job("j-000001", JobState.FAILED))
    assert world.look() == ([], {image.id: image})


def test_an_image_becomes_ready_and_the_agent_is_told_once() -> None:
    world, image = World(), make_image()
    world.put(image, make_job("j-000001", JobState.RUNNING))
    assert world.node.take(node(image)) and not world.node.take(node(image))
    pokes, images = world.look()
    assert pokes == [ASSIGNMENT] and images[image.id].state is ImageState.READY
    assert world.look()[0] == []


def test_a_failed_build_is_failed_and_keeps_its_layers() -> None:
    world, image = World(), make_image()
    world.put(image, make_job("j-000001", JobState.FAILED))
    world.node.take(node())
    assert world.look()[1][image.id].state is ImageState.FAILED


def test_what_work_needs_is_not_evicted() -> None:
    world, old, new = World(), make_image(), make_image(OTHER, "j-000002", used_at=2)
    spec = FunctionSpec(file="a.py", attr="app", image=old.id, bundle="0" * 64)
    world.put(
        old,
        new,
        make_job("j-000001", JobState.SUCCEEDED),
        make_job("j-000002", JobState.SUCCEEDED),
        Function(FunctionName("f"), DEFAULT_PROJECT, OWNER, 1, 1, spec, 1),
    )
    world.clock.advance(120)
    world.node.take(node(old, new, budget_bytes=150))
    assert set(world.look()[1]) == {old.id}


def test_a_queued_job_needs_its_image_too() -> None:
    world, image = World(), make_image()
    world.put(image, make_job("j-000001", JobState.SUCCEEDED), make_job("j-000003", JobState.QUEUED, image.id))
    world.clock.advance(120)
    world.node.take(node(image, budget_bytes=1))
    assert set(world.look()[1]) == {image.id}


def test_users_are_named() -> None:
    world, image = World(), make_image()
    job = make_job("j-000003", JobState.RUNNING, image.id)
    users = asyncio.run(world.store.read(lambda tx: find_users(tx, [job, replace(job, state=JobState.FAILED)])))
    assert users == {(OWNER.uid, image.id): ("job j-000003",)}


def test_the_machine_may_keep_every_layer_of_every_image_of_an_owner() -> None:
    (assigned,) = assign_images([make_image(), make_image(OTHER)])
    assert assigned == AssignedImages(OWNER, tuple(sorted({*name_layers(SPEC), *name_layers(OTHER)})))
