"""What is a volume? A named folder that outlives the jobs and functions that mount it."""

from __future__ import annotations

import msgspec

from steelyard.model.ids import ProjectName
from steelyard.model.owner import Owner


class Volume(msgspec.Struct, frozen=True):
    name: str
    project: ProjectName
    owner: Owner
    generation: int
    #: the folder, absolute, on every machine that mounts it
    path: str
    #: microseconds, wall clock
    created_at: int
    #: somebody else's folder, such as one on a shared file system: deleting the volume leaves it as it is
    external: bool = False
    #: what is in it is being deleted; it can't be mounted any more
    deleting: bool = False


class VolumeSeen(msgspec.Struct, frozen=True):
    """What a machine says of a volume's folder."""

    path: str
    #: bytes on the disk of all that is in it, as of `measured_at` (microseconds); None: not measured yet
    size_bytes: int | None = None
    #: False: there was more than is looked at
    complete: bool = True
    measured_at: int | None = None
    #: of its file system, for whoever mounts it
    free_bytes: int | None = None
    #: a sentence: why it can't be mounted
    error: str = ""
