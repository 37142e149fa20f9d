"""`python -m steelyard server` and `... agent`: the programs that `up` starts. Not for people, so `--help` does not list them."""

from __future__ import annotations

from pathlib import Path

import click

from steelyard.cli.session import find_settings, home_option


@click.command(hidden=True, help="The API server of one home.")
@home_option
def server(home: Path | None) -> None:
    from steelyard.cli.server import run_server

    run_server(*find_settings(home))


@click.command(hidden=True, help="The agent of one home on this machine.")
@home_option
def agent(home: Path | None) -> None:
    from steelyard.cli.agent import run_agent

    run_agent(*find_settings(home))
