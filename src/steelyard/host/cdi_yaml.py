"""What does a YAML file say? Run as a program of its own (`python -m steelyard.host.cdi_yaml FILE`), which prints it as JSON:
what reads YAML must not stay with an agent. A file that is not plain YAML ends it with 1 and a sentence.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from steelyard.errors import Refused
from steelyard.host.fabric.plain_yaml import read_plain_yaml


def main(path: str) -> int:
    try:
        content = read_plain_yaml(Path(path).read_text(), path)
    except Refused as err:
        sys.stderr.write(f"{err.public}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
