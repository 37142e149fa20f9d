"""`python -m steelyard`: the same command as the installed `steelyard`; `up` starts its own programs this way."""

from __future__ import annotations

from steelyard.cli.main import main

if __name__ == "__main__":
    main()
