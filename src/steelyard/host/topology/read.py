"""What machine do these files describe? Any mix of formats about one machine, in order of trust.

Each file is read once, with a bound, its format found by content (`formats.py`) and given to that format's reader; several are
merged. A folder with `sys/` and `proc/`, or a tar of one, is a machine too. Raises `Refused` with a sentence that names the file.
"""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from steelyard.errors import Refused
from steelyard.host.bounded import read_bounded
from steelyard.host.topology.formats import Format, find_format
from steelyard.host.topology.hwloc import read_hwloc_xml
from steelyard.host.topology.linux import read_linux
from steelyard.host.topology.merge import merge
from steelyard.host.topology.nccl import read_nccl_xml
from steelyard.host.topology.nvidia_matrix import read_nvidia_matrix
from steelyard.host.topology.nvidia_smi import read_nvidia_smi_text, read_nvidia_smi_xml, read_nvlink_status
from steelyard.host.topology.packed import unpack
from steelyard.host.topology.rocm import read_rocm_json, read_rocm_topo
from steelyard.model.topology import Topology

FILE_BYTES_MAX = 64 * 1024**2
FILES_MAX = 16
#: gzip, bzip2, xz, zstd; an uncompressed tar says so at byte 257
_PACKERS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_TAR_MARK, _TAR_PLACE = b"ustar", 257

_READERS: dict[Format, Callable[[str, str], Topology]] = {
    Format.HWLOC_XML: read_hwloc_xml,
    Format.NCCL_XML: read_nccl_xml,
    Format.NVIDIA_SMI_XML: read_nvidia_smi_xml,
    Format.NVIDIA_SMI_TEXT: read_nvidia_smi_text,
    Format.NVIDIA_MATRIX: read_nvidia_matrix,
    Format.NVLINK_STATUS: read_nvlink_status,
    Format.ROCM_TOPO: read_rocm_topo,
    Format.ROCM_JSON: read_rocm_json,
}


def read_topology(paths: Sequence[Path]) -> Topology:
    """One machine by all of these files and folders; the first is trusted most."""
    if not paths:
        raise Refused("No file is named: give at least one description of the machine.")
    if len(paths) > FILES_MAX:
        raise Refused(f"{len(paths)} files are named; one machine is described by at most {FILES_MAX}.")
    found = [_read_one(path) for path in paths]
    return found[0] if len(found) == 1 else merge(found)


def _read_one(path: Path) -> Topology:
    source = path.name or str(path)
    if path.is_dir():
        return _read_folder(path, source)
    if path.exists() and not path.is_file():
        raise Refused(f"{source} is neither a file nor a folder.")
    data = read_bounded(path, FILE_BYTES_MAX)
    if data.startswith(_PACKERS) or data[_TAR_PLACE : _TAR_PLACE + len(_TAR_MARK)] == _TAR_MARK:
        return read_linux_packed(path)
    text = decode(data, source)
    kind = find_format(text, source)
    return read_linux_packed(path) if kind is Format.PACKED else _READERS[kind](text, source)


def _read_folder(path: Path, source: str) -> Topology:
    if not (path / "sys").is_dir() and not (path / "proc").is_dir():
        raise Refused(f"{source} is a folder without sys/ and proc/, so it is no copy of a machine's.")
    return read_linux(path, source)


def read_linux_packed(path: Path) -> Topology:
    """A tree in one file: a tar archive (also compressed), JSON `{path: content}`, or a ttar text archive."""
    with tempfile.TemporaryDirectory(prefix="steelyard-topology-") as folder:
        unpack(path, Path(folder))
        return read_linux(Path(folder), path.name)


def decode(data: bytes, source: str) -> str:
    """The text. Windows writes what nvidia-smi says as UTF-16 with a mark. Raises `Refused` for what is no text."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Refused(f"{source} is not text (byte {error.start} is no UTF-8), so it describes no machine.") from error
    if "\0" in text:
        raise Refused(f"{source} is binary (it holds NUL bytes), so it describes no machine.")
    return text
