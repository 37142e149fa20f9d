"""How is a cgroup v2 kept from opening devices? By a small BPF program attached to it (v1 has the devices controller instead).

The program denies the listed device numbers and allows all others; the kernel asks it on every open and mknod in the group. See
`bpf(2)` and `BPF_PROG_TYPE_CGROUP_DEVICE` (Linux 4.15). Needs CAP_BPF or root.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from steelyard.errors import EdgeFailed

#: number of the bpf system call, which libc does not wrap
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "riscv64": 280, "s390x": 351}
_PROG_LOAD, _PROG_ATTACH, _PROG_QUERY = 5, 8, 16
_CGROUP_DEVICE_PROGRAM, _CGROUP_DEVICE_ATTACH = 15, 6
#: others (systemd) attach theirs to the groups above, and all must agree
_ALLOW_MULTI = 2
_BLOCK, _CHARACTER = 1, 2
#: of BPF's instructions those that are needed: load a word, and, compare with a constant, set, leave
_LOAD, _AND, _JUMP_NOT_EQUAL, _SET, _EXIT = 0x61, 0x57, 0x55, 0xB7, 0x95


def deny_devices(group: str, nodes: Sequence[str]) -> None:
    """Attach once: a group that has a program already keeps it (a workload's plan never changes). `nodes`: `c 195:3`."""
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _count_programs(fd):
            return
        program = _load(render_program([parse_node(node) for node in nodes]))
        try:
            _bpf(_PROG_ATTACH, struct.pack("=IIII", fd, program, _CGROUP_DEVICE_ATTACH, _ALLOW_MULTI), "attached")
        finally:
            os.close(program)
    finally:
        os.close(fd)


def parse_node(node: str) -> tuple[int, int, int]:
    """`c 195:3` -> (type as the kernel counts it, major, minor)."""
    kind, numbers = node.split()
    major, minor = numbers.split(":")
    return _BLOCK if kind == "b" else _CHARACTER, int(major), int(minor)


def render_program(denied: Sequence[tuple[int, int, int]]) -> bytes:
    """The instructions: r1 points to (access and type, major, minor); returning 0 denies."""
    code = [_instruction(_LOAD, 2, 1, 0), _instruction(_AND, 2, 0, 0, 0xFFFF)]
    code += [_instruction(_LOAD, 3, 1, 4), _instruction(_LOAD, 4, 1, 8)]
    for kind, major, minor in denied:
        code += [
            _instruction(_JUMP_NOT_EQUAL, 2, 0, 4, kind),
            _instruction(_JUMP_NOT_EQUAL, 3, 0, 3, major),
            _instruction(_JUMP_NOT_EQUAL, 4, 0, 2, minor),
            _instruction(_SET, 0, 0, 0, 0),
            _instruction(_EXIT, 0, 0, 0),
        ]
    return b"".join([*code, _instruction(_SET, 0, 0, 0, 1), _instruction(_EXIT, 0, 0, 0)])


def _instruction(code: int, destination: int, source: int, offset: int, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | destination, offset, value)


def _load(code: bytes) -> int:
    """A descriptor of the verified program."""
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
    head = (_CGROUP_DEVICE_PROGRAM, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence))
    return _bpf(_PROG_LOAD, struct.pack("=IIQQ", *head).ljust(120, b"\0"), "loaded")


def _count_programs(group_fd: int) -> int:
    """How many of this kind are attached to the group itself."""
    asked = ctypes.create_string_buffer(struct.pack("=IIIIQI", group_fd, _CGROUP_DEVICE_ATTACH, 0, 0, 0, 0).ljust(64, b"\0"), 64)
    _call(_PROG_QUERY, asked, "counted")
    return struct.unpack_from("=I", asked.raw, 24)[0]


def _bpf(command: int, attributes: bytes, what: str) -> int:
    return _call(command, ctypes.create_string_buffer(attributes, len(attributes)), what)


def _call(command: int, attributes: ctypes.Array[ctypes.c_char], what: str) -> int:
    number = _SYS_BPF.get(os.uname().machine)
    if number is None:
        raise EdgeFailed(f"Devices can't be denied on {os.uname().machine}: its number of bpf(2) is not known here.")
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(number, command, ctypes.byref(attributes), len(attributes))
    if answer < 0:
        error = os.strerror(ctypes.get_errno())
        raise EdgeFailed(f"The device filter could not be {what}: {error}. It needs root and Linux 4.15.", code="cgroup-failed")
    return answer
