"""Is this a step that `mpirun` has to start? Ranks of an MPI program find each other through their launcher, and `srun` here is
none: started by it, each would believe to be alone."""

from __future__ import annotations

import mmap
import os
import shutil

#: what --mpi may say that asks for nothing
NO_MPI = ("none", "")
_BINARY_MAX = 1 << 30


def links_mpi(command: str, path: str | None) -> bool:
    """Is it a binary that is linked against an MPI library (libmpi.so, libmpich.so, libmpifort.so)?"""
    file = shutil.which(command, path=path)
    if file is None:
        return False
    try:
        with open(file, "rb") as binary:
            if binary.read(4) != b"\x7fELF" or os.fstat(binary.fileno()).st_size > _BINARY_MAX:
                return False
            with mmap.mmap(binary.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # a name in the list of needed libraries stands between NULs
                return any(
                    content.find(b"\0" + name) >= 0 for name in (b"libmpi.so", b"libmpich.so", b"libmpifort.so", b"libmpi_")
                )
    except (OSError, ValueError):
        return False


def mpirun_command(tasks: int, command: list[str], env: dict[str, str], alone: bool) -> tuple[list[str], dict[str, str]] | None:
    """The command and its environment; None where there is no mpirun on the PATH."""
    program = shutil.which("mpirun", path=env.get("PATH"))
    if program is None:
        return None
    more = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    if not alone:
        # several jobs share these cores: ranks bound to the first of them would all meet there
        more |= {"OMPI_MCA_hwloc_base_binding_policy": "none", "PRTE_MCA_hwloc_default_binding_policy": "none"}
    return [program, "-n", str(tasks), *command], more | env
