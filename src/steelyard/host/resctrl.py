"""How is preemptible work kept from filling the caches and the memory bus? By the processor's own limits, where it has them.

Intel RDT, AMD QoS and Arm MPAM, all through /sys/fs/resctrl. One group per home: the least memory bandwidth that the hardware can
grant, and the lower half of each last-level cache. Where resctrl is not mounted nothing is done, and `NOT_ISOLATED` is said.
See the kernel's Documentation/filesystems/resctrl.rst.
"""

from __future__ import annotations

from collections.abc import Callable

from steelyard.host.cgroup_files import CgroupFiles

#: a file below `info/` -> its content, None where there is none
_Info = Callable[[str], str | None]

#: what is shared in spite of cpusets and weights
NOT_ISOLATED = "the last-level cache and the memory bus are shared: the kernel offers no resctrl here"


class Resctrl:
    """`mount` is /sys/fs/resctrl below the root that is looked under."""

    def __init__(self, mount: str, name: str, files: CgroupFiles) -> None:
        self._mount, self._files = mount, files
        self._group = f"{mount}/{name}-idle"

    @property
    def available(self) -> bool:
        return self._files.exists(f"{self._mount}/schemata")

    def prepare(self) -> list[str]:
        """Make the group with its limits; the file by which a process joins (writing `0`), none where that can't be."""
        if not self.available:
            return []
        try:
            self._files.make(self._group)
        except OSError:
            return []  # no group is free: the hardware has a handful
        current = self._files.read(f"{self._group}/schemata") or ""
        for line in render_limits(current, self._info):
            self._files.try_write(f"{self._group}/schemata", f"{line}\n")
        return [f"{self._group}/tasks"]

    def remove(self) -> None:
        if self._files.exists(self._group):
            self._files.remove(self._group)

    def _info(self, name: str) -> str | None:
        return self._files.read(f"{self._mount}/info/{name}")


def render_limits(schemata: str, info: _Info) -> list[str]:
    """The lines to write, for the resources that these schemata have: `MB:0=100;1=100`, `L3:0=7ff;1=7ff`."""
    lines: list[str] = []
    for line in schemata.splitlines():
        resource, _, domains = (part.strip() for part in line.partition(":"))
        numbers = [domain.partition("=")[0].strip() for domain in domains.split(";") if "=" in domain]
        limit = _least_bandwidth(info) if resource == "MB" else _half_cache(info) if resource == "L3" else None
        if limit is not None and numbers:
            lines.append(f"{resource}:" + ";".join(f"{number}={limit}" for number in numbers))
    return lines


def _least_bandwidth(info: _Info) -> str | None:
    """In percent (AMD counts in eighths of GB/s and says so by the same file)."""
    least = info("MB/min_bandwidth")
    return least if least is not None and least.isdigit() else None


def _half_cache(info: _Info) -> str | None:
    """A mask of neighbouring ways, as the hardware wants it."""
    try:
        ways = int(info("L3/cbm_mask") or "", 16).bit_length()
        least = int(info("L3/min_cbm_bits") or "1")
    except ValueError:
        return None
    return f"{(1 << max(least, ways // 2, 1)) - 1:x}" if ways else None
