"""What does this machine show of CDI specifications, drivers and device files? One look, under a root that is a parameter.

Files that somebody other than root may change are not used: what they say is done by root. A specification in YAML is decoded by
a program that ends (`cdi_yaml.py`), once for each version of the file.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from steelyard.host.device_nodes import observe_nodes
from steelyard.host.health.ask import ask
from steelyard.host.nvidia_driver import find_aliases, observe_driver, observe_parts, observe_shared
from steelyard.host.sysfs import names, read_text
from steelyard.lifecycle.cdi import read_specification
from steelyard.model.cdi import CdiEdits, CdiFacts, Number, OwnNode, Problem, SpecificationFile
from steelyard.model.mount import DeviceNode

#: the standard's; what is in the later wins
FOLDERS = ("/etc/cdi", "/var/run/cdi")
BYTES_MAX = 4 << 20
FILES_MAX = 64
_MISC = {"/dev/infiniband/rdma_cm": "sys/class/misc/rdma_cm/dev", "/dev/kfd": "sys/class/kfd/kfd/dev"}


class CdiReader:
    """Of one machine. Remembers what files said as long as they stay the same."""

    def __init__(self, root: Path = Path("/"), folders: Sequence[str] = FOLDERS) -> None:
        self._root, self._folders = root, folders
        self._known: dict[str, tuple[tuple[int, ...], SpecificationFile | Problem]] = {}

    def observe(self) -> CdiFacts:
        """Takes some ms, and the start of a program for each new YAML file. Raises nothing."""
        read = [
            each
            for priority, folder in enumerate(self._folders)
            for name in names(self._at(folder))[:FILES_MAX]
            if name.endswith((".json", ".yaml"))
            if (each := self._read(f"{folder}/{name}", priority)) is not None
        ]
        files = tuple(each for each in read if isinstance(each, SpecificationFile))
        driver = observe_driver(self._root, os.uname().machine)
        parts = [
            edits
            for file in files
            for edits in (file.specification.container_edits, *(each.container_edits for each in file.specification.devices))
        ]
        mounted = {mount.host_path for part in parts for mount in part.mounts or ()}
        libraries = {path for path in mounted if ".so" in os.path.basename(path)}
        return CdiFacts(
            root="" if self._root == Path("/") else str(self._root),
            files=files,
            problems=tuple(each for each in read if isinstance(each, Problem)),
            driver=driver,
            own_nodes=observe_own(self._root),
            shared_nodes=observe_shared(self._root) | self._misc(),
            numbers=self._numbers(parts),
            missing=frozenset(path for path in mounted if not self._at(path).exists()),
            aliases=find_aliases(self._root, libraries | set(driver.libraries if driver is not None else ())),
        )

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _read(self, path: str, priority: int) -> SpecificationFile | Problem | None:
        try:
            seen, above = self._at(path).stat(), self._at(path).parent.stat()
        except FileNotFoundError:
            return None  # it went away while we looked
        except OSError as err:
            return Problem(path, f"it can't be read ({err.strerror})")
        stamp = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_mode, seen.st_uid, above.st_mode, above.st_uid)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            ours = (0, os.geteuid())
            if any(each.st_uid not in ours or each.st_mode & 0o022 for each in (seen, above)):
                said = Problem(path, "others than root may change it, or its folder: chown root, and chmod go-w")
            elif not stat.S_ISREG(seen.st_mode) or seen.st_size > BYTES_MAX:
                said = Problem(path, f"it is no file of at most {BYTES_MAX >> 20} MiB")
            else:
                said = self._decode(path, priority)
            known = self._known[path] = (stamp, said)
        return known[1]

    def _decode(self, path: str, priority: int) -> SpecificationFile | Problem:
        typed = path.endswith(".json")
        try:
            if typed:
                content = msgspec.json.decode(self._at(path).read_bytes())
            else:
                told = ask([sys.executable, "-P", "-m", "steelyard.host.cdi_yaml", str(self._at(path))])
                if told.error:
                    said = told.error.removeprefix(f"{sys.executable} failed with code 1: ").rstrip(".")
                    return Problem(path, said.removeprefix(f"{self._at(path)}: "))
                content = msgspec.json.decode(told.text)
        except (OSError, msgspec.MsgspecError, RecursionError) as err:
            return Problem(path, f"it can't be read ({err})")
        made = read_specification(content, path, typed=typed)
        return made if isinstance(made, Problem) else SpecificationFile(path, priority, made)

    def _numbers(self, parts: Sequence[CdiEdits]) -> dict[str, DeviceNode]:
        found: dict[str, DeviceNode] = {}
        for source in {node.source for part in parts for node in part.device_nodes or ()}:
            try:
                seen = self._at(source).stat()
            except OSError:
                continue
            kind = "c" if stat.S_ISCHR(seen.st_mode) else "b" if stat.S_ISBLK(seen.st_mode) else ""
            if kind:
                found[source] = DeviceNode(source, kind, os.major(seen.st_rdev), os.minor(seen.st_rdev))
        return found

    def _misc(self) -> dict[str, Number]:
        told = {path: _parse(read_text(self._root / file)) for path, file in _MISC.items()}
        return {path: number for path, number in told.items() if number is not None}


def observe_own(root: Path) -> dict[str, tuple[OwnNode, ...]]:
    """PCI address of a GPU or RDMA card -> the device files that it alone has; of GPUs that MIG cut, their parts' too."""
    found: dict[str, list[OwnNode]] = {}
    for node in observe_nodes(root):
        number = _parse(node.number)
        if number is None:
            continue
        found.setdefault(node.pci, []).append(OwnNode(node.path, number))
        if re.fullmatch(r"/dev/nvidia\d+", node.path):
            found[node.pci] += observe_parts(root, number[1])
    return {pci: tuple(nodes) for pci, nodes in found.items()}


def _parse(text: str | None) -> Number | None:
    """`195:3`"""
    match = re.fullmatch(r"(\d{1,7}):(\d{1,7})", text or "")
    return None if match is None else (int(match[1]), int(match[2]))
