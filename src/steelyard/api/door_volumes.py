"""May these volumes be mounted by this owner's work? Pure checks at the door; what the machine says, it says at the start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from steelyard.api.door import Finding
from steelyard.lifecycle.mounts import check_mounts
from steelyard.model.mount import VolumeMount
from steelyard.model.owner import Owner
from steelyard.model.volume import Volume


def check_volumes(asked: Sequence[VolumeMount], stored: Iterable[Volume], owner: Owner) -> list[Finding]:
    if not asked:
        return []
    findings = [Finding(code, text) for code, text in check_mounts(asked)]
    known = {volume.name: volume for volume in stored}
    for mount in asked if not findings else ():
        volume = known.get(mount.name)
        if volume is None:
            text = f"there is no volume {mount.name}; `steelyard volumes create {mount.name}` makes it"
            findings.append(Finding("no-such-volume", text))
        elif volume.owner != owner:
            findings.append(Finding("not-your-volume", f"volume {mount.name} belongs to {volume.owner.user}"))
        elif volume.deleting:
            findings.append(Finding("volume-deleting", f"volume {mount.name} is being deleted"))
    return findings
