"""A typed endpoint: the annotations are the contract. A wrong field is refused by name, before the function runs.

steelyard deploy examples/functions/shop.py --public
curl $URL -H 'content-type: application/json' -d '{"item": "tea", "count": 2}'
curl $URL/openapi.json
"""

from dataclasses import dataclass
from enum import Enum

import steelyard as sy

app = sy.App("shop")


class Item(Enum):
    TEA = "tea"
    COFFEE = "coffee"


PRICES = {Item.TEA: 3.0, Item.COFFEE: 4.0}


@dataclass
class Order:
    item: Item
    count: int = 1


class SoldOut(Exception):
    status_code = 409


@app.function
@sy.endpoint
def price(order: Order) -> dict[str, float]:
    if order.count > 100:
        raise SoldOut(f"there is not that much {order.item.value}")
    return {"total": PRICES[order.item] * order.count}
