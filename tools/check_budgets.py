"""Are files and functions small enough to be read? `python tools/check_budgets.py FOLDER...` names each that is not and exits 1.

Budgets: a file has at most 600 lines, a function at most 70 (its decorators not counted).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70


def find_oversized(file: Path) -> Iterator[str]:
    text = file.read_text()
    lines = text.count("\n")
    if lines > FILE_LINES_MAX:
        yield f"{file}: {lines} lines (at most {FILE_LINES_MAX})"
    for node in ast.walk(ast.parse(text, str(file))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{file}:{node.lineno}: {node.name} has {length} lines (at most {FUNCTION_LINES_MAX})"


def main(folders: list[str]) -> int:
    found = [line for folder in folders for file in sorted(Path(folder).rglob("*.py")) for line in find_oversized(file)]
    print("\n".join(found) if found else "budgets kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
