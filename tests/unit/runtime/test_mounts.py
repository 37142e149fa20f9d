"""Where nothing can be mounted, the start says what is left."""

from __future__ import annotations

from steelyard.model.ids import WorkloadId
from steelyard.runtime import mounts
from steelyard.runtime.spawn_child import _explain
from steelyard.wire.spawn import Spawn

REQUEST = Spawn(WorkloadId("a"), ("true",), {}, "/", "/dev/null", "/dev/null")


def test_a_namespace_that_is_refused_is_told_with_the_way_without() -> None:
    said = _explain("volumes", REQUEST, OSError(1, "Operation not permitted", mounts.NAMESPACE))
    assert "Operation not permitted" in said and "without a path" in said and "STEELYARD_VOLUME_" in said


def test_any_other_mount_is_told_by_its_paths() -> None:
    said = _explain("volumes", REQUEST, OSError(2, "No such file or directory", "mount /srv/data on /data"))
    assert said == "mount /srv/data on /data: No such file or directory"
