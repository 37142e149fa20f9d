"""What does one object of an hwloc XML file say? Its attributes as numbers and masks, or a refusal that names both.

Works on parsed elements only. Never guesses a value that is not a legal number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from steelyard.errors import Refused

#: Hexadecimal digits of a CPU or node mask: 65,536 bits, eight times what Linux can be built for. Longer ones cost time.
MASK_LENGTH_MAX = 20_000
#: Bytes, KiB and counts: no machine has more, and a thousand of them still fit into 64 bits.
NUMBER_MAX = 2**52


@dataclass(frozen=True, slots=True)
class HwlocObject:
    element: Element
    source: str

    @property
    def kind(self) -> str:
        return self.element.get("type", "")

    @property
    def name(self) -> str:
        return self.element.get("name", "")

    @property
    def subtype(self) -> str:
        return self.element.get("subtype", "")

    def children(self) -> Iterator[HwlocObject]:
        return (HwlocObject(child, self.source) for child in self.element.iterfind("object"))

    def text(self, attribute: str) -> str | None:
        return self.element.get(attribute)

    def number(self, attribute: str) -> int | None:
        """None where the attribute is missing."""
        text = self.element.get(attribute)
        return None if text is None else parse_number(text, f"{self.source}: {self.kind} with {attribute}")

    def index(self) -> int:
        """The operating system's number, which PUs and NUMA nodes must have."""
        number = self.number("os_index")
        if number is None:
            raise Refused(f"{self.source}: a {self.kind} has no os_index, so it can't be told which one it is.", code="illegal")
        return number

    def link_gbps(self) -> float | None:
        """`pci_link_speed`, which hwloc gives in GB/s; it writes 0 where it does not know."""
        text = self.element.get("pci_link_speed")
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise Refused(f"{self.source}: {self.kind} with pci_link_speed={text[:40]!r}, which is no speed.", code="illegal")
        return round(float(text) * 8, 3) or None

    def mask(self, attribute: str) -> int | None:
        """A set as the bits of a whole number, all the higher bits set (a negative number) where hwloc writes `0xf...f`."""
        text = self.element.get(attribute)
        if text is None:
            return None
        value = 0
        # Groups of 32 bits from the highest; an empty group is 0.
        for place, group in enumerate(text.split(",") if len(text) <= MASK_LENGTH_MAX else ["too long"]):
            if place == 0 and group == "0xf...f":
                value = -1
            elif group == "" and place > 0:
                value <<= 32
            elif re.fullmatch(r"0x[0-9a-fA-F]+", group) and (place == 0 or int(group, 16) < 2**32):
                value = value << 32 | int(group, 16)
            else:
                raise Refused(f"{self.source}: {self.kind} with {attribute}={text[:40]!r}, which is no mask.", code="illegal")
        return value

    def infos(self) -> dict[str, str]:
        return {info.get("name", ""): info.get("value", "") for info in self.element.iterfind("info")}


def parse_number(text: str, where: str, number_max: int = NUMBER_MAX) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text) or (number := int(text)) > number_max:
        raise Refused(f"{where}={text[:40]!r}, which is no number.", code="illegal")
    return number


def as_mask(numbers: Iterable[int]) -> int:
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def members(mask: int) -> tuple[int, ...]:
    """The numbers of the bits that are set, in order. Takes time by the bits, so it is for masks cut down to known numbers."""
    digits = bin(mask)[:1:-1]
    return tuple(match.start() for match in re.finditer("1", digits))
