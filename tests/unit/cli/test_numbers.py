"""Options that count things take numbers, and nothing that JSON would turn into "not given"."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from steelyard.cli.numbers import Number, NumberRange


@click.command()
@click.option("--cpus", type=Number(), default=1.0)
@click.option("--cores", type=NumberRange(0))
def command(cpus: float, cores: float | None) -> None:
    click.echo(f"{cpus} {cores}")


@pytest.mark.parametrize("option", ["--cpus", "--cores"])
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "one"])
def test_what_is_no_number_is_named(option: str, text: str) -> None:
    done = CliRunner().invoke(command, [option, text])
    assert done.exit_code == 2 and option in done.output and (text in done.output or "range" in done.output)


def test_numbers_are_taken() -> None:
    assert CliRunner().invoke(command, ["--cpus", "0.5", "--cores", "3"]).output == "0.5 3.0\n"
