"""Which stand-in is meant? `main.py NAME ARGS`, as the launchers call it. Exit code 2: what was asked can't be understood."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # `python -I` looks for modules nowhere near this file
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

NAMES = ("srun", "sbatch", "squeue", "scancel", "scontrol")
VERSION = "slurm-wlm 24.05.0 (Steelyard's stand-in)"


def main(name: str, words: list[str]) -> int:
    from importlib import import_module

    from slurm.client import Failed  # pyright: ignore[reportMissingImports]
    from slurm.getopt import NotUnderstood  # pyright: ignore[reportMissingImports]

    if words and words[0] in ("-V", "--version"):
        print(VERSION)
        return 0
    try:
        return int(import_module(f"slurm.{name}").main(words))
    except NotUnderstood as err:
        print(f"{name}: error: {err}. Nothing was done.", file=sys.stderr)
        return 2
    except Failed as err:
        print(f"{name}: error: {err}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
