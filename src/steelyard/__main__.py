"""What does the installed `steelyard` do first, and `python -m steelyard`? `up` starts its own programs this way too."""

from __future__ import annotations

import gc


def main() -> None:
    # nothing that imports make is garbage: to look for some took a tenth of a short command's time. `cli/main.py` collects again
    # when the command itself begins
    gc.disable()
    from steelyard.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
