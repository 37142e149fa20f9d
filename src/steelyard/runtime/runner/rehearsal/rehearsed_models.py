"""What is declared when an environment that has pydantic and the SDK is rehearsed (rehearse.py)."""

from __future__ import annotations

import pydantic

import steelyard as sy

app = sy.App("rehearsal")


class Item(pydantic.BaseModel):
    name: str
    price: float = 1.0
    tags: list[str] = []
    more: dict[str, int] | None = None


class Order(pydantic.BaseModel):
    items: list[Item]
    note: str | None = pydantic.Field(default=None, max_length=100)


@app.function()
@sy.endpoint()
def endpoint(order: Order) -> Item:
    """Nobody calls it."""
    return order.items[0]
