"""What does a gang need across machines, and where does it go? One demand for many machines at once, its plan or the refusal."""

from __future__ import annotations

import msgspec

from steelyard.model.reason import Reason


class GangDemand(msgspec.Struct, frozen=True):
    #: machines, >= 1; each takes the same
    nodes: int = 1
    #: GPUs on each machine: a whole number, or 0 < x < 1 for a share of one GPU
    gpus_per_node: float = 0
    #: whole machines: nobody else is on them
    exclusive: bool = False
    #: `domain`, `block`, `leaf`, `spine`, ...: the whole gang must be in one group of that level
    required_level: str | None = None
    #: touch as few groups of that level as possible, before anything else
    preferred_level: str | None = None
    #: every machine must have a port on each of the same rails
    rails_aligned: bool = False

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError("a gang has at least one machine")
        if not 0 <= self.gpus_per_node <= 1000 or (self.gpus_per_node > 1 and self.gpus_per_node != int(self.gpus_per_node)):
            raise ValueError("GPUs per machine are a whole number, or a share between 0 and 1 of one GPU")

    @property
    def whole_gpus(self) -> int:
        """On each machine; 0 where it asks for a share or for none."""
        return int(self.gpus_per_node)

    @property
    def share_milli(self) -> int:
        """Thousandths of one GPU; 0 where it asks for whole GPUs or none. A tiny share still counts."""
        return 0 if self.gpus_per_node == int(self.gpus_per_node) else min(999, max(1, round(self.gpus_per_node * 1000)))


class GangMember(msgspec.Struct, frozen=True):
    """One machine of a gang. Its place in the plan is its rank."""

    node: str
    #: numbers of the GPUs that are booked there
    gpus: tuple[int, ...] = ()
    #: thousandths of each of them
    milli: int = 1000


class GangPlan(msgspec.Struct, frozen=True):
    #: in rank order: neighbours in the fabric have neighbouring ranks
    members: tuple[GangMember, ...]
    #: level -> groups touched, from the innermost level to the outermost
    span: dict[str, int]
    #: the innermost level at which one group holds the whole gang
    common_level: str
    #: rails that every machine of the gang has
    rails: tuple[int, ...] = ()
    #: nobody else may be on these machines
    exclusive: bool = False
    #: sentences: why here
    explanation: tuple[str, ...] = ()


class GangRefusal(msgspec.Struct, frozen=True):
    """No, with every blocking reason. `never`: even the empty fabric could not hold it."""

    reasons: tuple[Reason, ...]
    never: bool
    #: a sentence per reason
    detail: str
    #: machines of the largest such gang that fits now, at the required level
    largest_nodes: int
