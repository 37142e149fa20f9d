"""What became of the images that were asked for, and which must make room? Goes by their jobs and by what the machine says lies
on its disk.

An image that is there is READY whatever its job says; when all of them take more than they may, the least recently used that
nothing needs go. Removing a row is all that is done here: the assignment names what may stay, and the agent removes the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, IMAGES
from steelyard.control.live import LiveJobs
from steelyard.control.watch import Watch
from steelyard.lifecycle.image import choose_evictions, judge, name_layers
from steelyard.model.built_image import Image
from steelyard.model.ids import ImageId
from steelyard.model.job import Job, Owner
from steelyard.store import Event, Store, Tx
from steelyard.wire.agent import AssignedImages, ImagesSeen

#: an image of an owner
Key = tuple[int, ImageId]


class NodeImages:
    """What the machine said last; None before it did."""

    def __init__(self) -> None:
        self.seen: ImagesSeen | None = None

    def take(self, seen: ImagesSeen | None) -> bool:
        """True when it says something new."""
        if seen is None or seen == self.seen:
            return False
        self.seen = seen
        return True


class Seen(msgspec.Struct, frozen=True):
    #: each with the job of its newest build
    images: tuple[tuple[Image, Job | None], ...]
    #: images that work needs, with a word for each: `function NAME`, `job ID`, `schedule NAME`
    users: dict[Key, tuple[str, ...]]
    node: ImagesSeen | None


class Actions(msgspec.Struct, frozen=True):
    changed: tuple[Image, ...] = ()
    evicted: tuple[Image, ...] = ()
    now: int = 0


class Report(msgspec.Struct, frozen=True):
    changed: tuple[ImageId, ...] = ()


def find_users(tx: Tx, jobs: Iterable[Job]) -> dict[Key, tuple[str, ...]]:
    """What needs an image: deployed functions, schedules, and those of `jobs` that have not ended."""
    found: dict[Key, dict[str, None]] = {}

    def note(owner: Owner, image: str, what: str) -> None:
        if image:
            found.setdefault((owner.uid, ImageId(image)), {})[what] = None

    for function in tx.functions():
        for each in function.live.values():
            note(function.owner, each.spec.image, f"function {function.name}")
    for schedule in tx.schedules():
        if schedule.spec is not None:
            note(schedule.owner, schedule.spec.image, f"schedule {schedule.name}")
    for job in jobs:
        if not job.state.terminal:
            note(job.owner, job.spec.image, f"job {job.id}")
    return {key: tuple(whats) for key, whats in found.items()}


def living(tx: Tx, live: LiveJobs) -> list[Job]:
    """All jobs that have not ended, inside a transaction: the copy, with what has changed since."""
    change, changed = live.change, {job.id: job for job in tx.jobs_changed(live.change)[1]}
    known = {job.id: job for job in (*live.queued, *live.holding)} if change else {}
    return [job for job in (known | changed).values() if not job.state.terminal]


async def load(store: Store, live: LiveJobs, node: NodeImages) -> Seen:
    def read(tx: Tx) -> Seen:
        images = tx.images()
        if not images:
            return Seen((), {}, node.seen)
        return Seen(tuple((image, tx.job(image.job)) for image in images), find_users(tx, living(tx, live)), node.seen)

    return await store.read(read)


def decide(seen: Seen, now: int) -> Actions:
    if seen.node is None:
        return Actions(now=now)
    there = {(each.uid, each.id): each for each in seen.node.layers}
    after = [judge(image, job, there.get((image.owner.uid, image.id)), now) for image, job in seen.images]
    evicted = choose_evictions(after, seen.node.layers, seen.users, seen.node.budget_bytes, now)
    changed = [new for new, (old, _) in zip(after, seen.images, strict=True) if new is not old and new not in evicted]
    return Actions(tuple(changed), tuple(evicted), now)


async def carry_out(store: Store, actions: Actions) -> Report:
    """Raises Conflict when a row moved on since it was read; nothing is stored then."""
    if not (actions.changed or actions.evicted):
        return Report()

    def commit(tx: Tx) -> Report:
        for image in actions.changed:
            tx.put_image(image)
            text = f"{image.state.value}{f': {image.detail}' if image.detail else ''}"
            tx.add_event(Event(actions.now, image.project, image.owner.user, "image", image.id, text))
        for image in actions.evicted:
            tx.delete_image(image.owner.uid, image.id)
            text = "removed: others needed its room, and nothing had used it for longer"
            tx.add_event(Event(actions.now, image.project, image.owner.user, "image", image.id, text))
        return Report(tuple(image.id for image in (*actions.changed, *actions.evicted)))

    return await store.write(commit)


def assign_images(images: Iterable[Image]) -> tuple[AssignedImages, ...]:
    """What may lie on the machine. Pure."""
    owners: dict[int, tuple[Owner, set[ImageId]]] = {}
    for image in images:
        owners.setdefault(image.owner.uid, (image.owner, set()))[1].update(name_layers(image.spec))
    return tuple(AssignedImages(owner, tuple(sorted(layers))) for _, (owner, layers) in sorted(owners.items()))


class ImagesLoop:
    name = IMAGES
    tick_s = 5.0

    def __init__(self, store: Store, clock: Clock, watch: Watch, live: LiveJobs, node: NodeImages) -> None:
        self._store, self._clock, self._watch, self._live, self._node = store, clock, watch, live, node

    async def activate(self) -> Sequence[str]:
        report = await carry_out(self._store, decide(await load(self._store, self._live, self._node), self._clock.now_us()))
        for image in report.changed:
            self._watch.notify(f"image/{image}")
        return [ASSIGNMENT] if report.changed else []
