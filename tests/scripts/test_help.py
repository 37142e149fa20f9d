"""Every `--help` as it was last agreed on. `python tests/scripts/test_help.py` writes them anew."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from steelyard.cli.main import COMMANDS, PROGRAMS

GOLDEN = Path(__file__).parent / "help"
LINES = [
    "",
    *COMMANDS,
    "keys create",
    "keys delete",
    *(f"secrets {word}" for word in ("list", "create", "delete")),
    *(f"schedules {word}" for word in ("create", "delete", "pause", "resume")),
    *(f"cluster {word}" for word in ("up", "add", "remove", "drain", "resume", "config", "attach", "status", "detach")),
    *(f"image {word}" for word in ("build", "pull", "ls", "inspect", "rm")),
]


def help_of(line: str) -> str:
    command = [sys.executable, "-P", "-m", "steelyard", *line.split(), "--help"]
    environ = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout


def golden(line: str) -> Path:
    return GOLDEN / f"{line.replace(' ', '-') or 'steelyard'}.txt"


@pytest.mark.parametrize("line", LINES)
def test_help_is_as_agreed(line: str) -> None:
    assert help_of(line) == golden(line).read_text()


@pytest.mark.parametrize("line", LINES[1:])
def test_help_shows_examples(line: str) -> None:
    assert f"steelyard {line.split()[0]}" in golden(line).read_text().partition("Examples:")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_list_is_the_commands_own(name: str) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert (command.name, command.get_short_help_str(200)) == (name, COMMANDS[name].help)


def test_the_page_about_the_command_line_says_the_same() -> None:
    tool = Path(__file__).parents[2] / "tools" / "render_docs.py"
    assert subprocess.run([sys.executable, tool, "--check"], check=False).returncode == 0, "run `make docs`"


def test_our_own_programs_are_not_listed() -> None:
    shown = {line.split()[0] for line in golden("").read_text().splitlines() if line.strip()}
    assert not set(PROGRAMS) & shown
    assert set(COMMANDS) <= shown


def test_help_imports_no_command_and_nothing_heavy() -> None:
    lines = ("import sys", "import steelyard.cli.main as m", "try: m.main(['--help'])", "except SystemExit: print(*sys.modules)")
    modules = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout.split()
    assert "steelyard.cli.main" in modules
    heavy = {"rich", "httpx2", "asyncio", "sqlalchemy", "litestar", "msgspec", "steelyard.cli.up", "steelyard.cli.run"}
    assert not heavy & set(modules)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in LINES:
        golden(each).write_text(help_of(each))
