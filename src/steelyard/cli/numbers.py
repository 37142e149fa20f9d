"""Which numbers does an option take? Those that JSON can say: neither nan nor inf, which would arrive as "not given"."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.types.FloatParamType):
    """As click's own float."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _finite(self, value, super().convert(value, param, ctx), param, ctx)


class NumberRange(click.FloatRange):
    """As click's own FloatRange."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _finite(self, value, super().convert(value, param, ctx), param, ctx)


def _finite(kind: click.ParamType, value: Any, number: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
    return number if math.isfinite(number) else kind.fail(f"{value!r} is not a number to count with.", param, ctx)
