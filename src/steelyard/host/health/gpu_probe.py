"""Does this GPU compute and remember? The active check of one NVIDIA GPU, through the driver's own library.

Takes the PCI address, allocates 64 MiB on it, fills them, reads them back and compares. Run as a program of its own (`python -m
steelyard.host.health.gpu_probe 0000:0f:00.0`), because a sick driver may hang for ever: exit code 0 and `PASS` when all was as
written, 1 and what differed, 2 and why it could not look.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

BYTES = 64 << 20
#: written as 32-bit words; the second is the first one's complement, so that each bit is seen as 0 and as 1
PATTERNS = (0x5A5AA5A5, 0xA5A55A5A)
UNKNOWN, FAILED = 2, 1


def main(pci: str) -> int:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return _say(UNKNOWN, "NVIDIA's driver library (libcuda.so.1) is not here.")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    steps: tuple[tuple[str, Any], ...] = (
        ("start the driver", lambda: cuda.cuInit(0)),
        ("find the GPU", lambda: cuda.cuDeviceGetByPCIBusId(ctypes.byref(device), pci.encode())),
        ("open the GPU", lambda: cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device)),
        ("allocate memory", lambda: cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(BYTES))),
    )
    for what, step in steps:
        code = step()
        if code != 0:
            return _say(FAILED, f"The GPU could not {what} (CUDA error {code}).")
    buffer = (ctypes.c_uint32 * (BYTES // 4))()
    for pattern in PATTERNS:
        expected = pattern.to_bytes(4, sys.byteorder) * (BYTES // 4)
        codes = (
            cuda.cuMemsetD32_v2(memory, ctypes.c_uint32(pattern), ctypes.c_size_t(BYTES // 4)),
            cuda.cuCtxSynchronize(),
            cuda.cuMemcpyDtoH_v2(buffer, memory, ctypes.c_size_t(BYTES)),
        )
        if any(codes):
            return _say(FAILED, f"The GPU could not fill and read back its memory (CUDA error {next(filter(None, codes))}).")
        if bytes(buffer) != expected:
            return _say(FAILED, "The GPU's memory did not hold what was written.")
    cuda.cuMemFree_v2(memory)
    cuda.cuCtxDestroy_v2(context)
    return _say(0, f"PASS {BYTES >> 20} MiB written and read back twice.")


def _say(code: int, sentence: str) -> int:
    sys.stdout.write(sentence + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
