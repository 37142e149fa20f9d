"""Which revisions of a function get which part of its traffic, and does the new one have to go back? Shares and looks go in,
routes, steps and verdicts come out.

Never reads the clock, the disk or the network; time is an argument.

Routes, in order (`plan_rollout`):
1. A revision gets requests only once it is ready. What is ready and wanted gets its share at once.
2. The share of those that are not ready (yet, or because they failed) stays with the revisions that are leaving, as much of it as
   they have now; what is left of it goes to the wanted ones that are ready, in proportion to their shares. Nobody gets what is
   nobody's: while anything is ready, the shares sum to 100.
3. One revision is made ready at a time, the newest first, and each is tried once.
4. What is ready and has neither a share nor a tag is retired.

Going back (`decide_rollback`), while a revision that took traffic is watched:
1. `FAILED_STARTS_MAX` of its replicas that could not be started, or ended by themselves before any request, are enough.
2. So is a share of failed requests that is more than `errors_max` above that of the revisions it took the traffic from, once
   `REQUESTS_MIN` requests were answered and `ERRORS_MIN` of them failed. The others are judged over the same time; where they had
   too few requests in it, over all the time they had. What fails for all alike is no reason to go back.
3. After `WINDOW_S` it has proved itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum

import msgspec

from steelyard.model.function import Rollout, Routes, Share

#: how long a new revision is watched after it took traffic
WINDOW_S = 600.0
#: of `--rollback-errors`
ERRORS_MAX = 0.05
REQUESTS_MIN = 20
ERRORS_MIN = 5
FAILED_STARTS_MAX = 3


class Wanted(msgspec.Struct, frozen=True):
    """A revision as it should be reached: by a share of the traffic, by tags, or both."""

    revision: int
    percent: int
    tags: tuple[str, ...] = ()


class RolloutPlan(msgspec.Struct, frozen=True):
    """`routes` first, then `retire` (no route leads there any more), while `make_ready` is under way."""

    routes: Routes
    make_ready: int | None = None
    retire: tuple[int, ...] = ()


def plan_rollout(wanted: Iterable[Wanted], ready: Collection[int], failed: Collection[int], routed: Routes) -> RolloutPlan:
    """The rule above. `ready` are those that may be routed to, those that are leaving included."""
    asked = [each for each in wanted if each.percent or each.tags]
    tags = sorted((tag, each.revision) for each in asked if each.revision in ready for tag in each.tags)
    routes = Routes(_weigh(asked, ready, routed), tuple(tags))
    missing = [each.revision for each in asked if each.revision not in ready and each.revision not in failed]
    kept = routes.revisions | {each.revision for each in asked}
    return RolloutPlan(routes, max(missing, default=None), tuple(sorted(set(ready) - kept)))


def _weigh(asked: Sequence[Wanted], ready: Collection[int], routed: Routes) -> tuple[Share, ...]:
    shares = {each.revision: each.percent for each in asked if each.percent}
    if not shares:
        return ()
    there = {revision: percent for revision, percent in shares.items() if revision in ready}
    leaving = {each.revision: each.percent for each in routed.shares if each.revision not in shares and each.revision in ready}
    rest = 100 - sum(there.values())
    kept = rest if not there else min(rest, sum(leaving.values()))
    found = {revision: there.get(revision, 0) for revision in {*there, *leaving}}
    for parts, amount in ((leaving, kept if leaving else 0), (there, rest - (kept if leaving else 0))):
        for revision, percent in divide(amount, parts).items():
            found[revision] += percent
    return tuple(Share(revision, percent) for revision, percent in sorted(found.items()) if percent)


def divide(amount: int, parts: Mapping[int, int]) -> dict[int, int]:
    """`amount` in whole numbers, in proportion to `parts`; what is left over goes to the largest remainders, of equals to the
    newest. All of it is given out, unless there is no part."""
    total = sum(parts.values())
    if not total:
        return {}
    found = {key: amount * part // total for key, part in parts.items()}
    order = sorted(parts, key=lambda key: (amount * parts[key] % total, key), reverse=True)
    for key in order[: amount - sum(found.values())]:
        found[key] += 1
    return found


def split(before: Sequence[Share], revision: int, percent: int) -> tuple[Share, ...]:
    """A new revision gets `percent`; those that had the traffic before keep the rest in proportion. Where nobody had any, all of
    it is the new one's."""
    others = {share.revision: share.percent for share in before if share.revision != revision and share.percent}
    if not others:
        return (Share(revision, 100),)
    found = {**divide(100 - percent, others), revision: percent}
    return tuple(Share(key, part) for key, part in sorted(found.items()) if part)


class Counts(msgspec.Struct, frozen=True):
    """Requests that ended and those of them that failed; starts of replicas that came to nothing."""

    requests: int = 0
    errors: int = 0
    failed_starts: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.requests + other.requests, self.errors + other.errors, self.failed_starts + other.failed_starts)

    @property
    def share(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


class Verdict(Enum):
    WATCH = "watch"
    PROVED = "proved"
    BACK = "back"


def decide_rollback(now: int, rollout: Rollout, new: Counts, old: Counts) -> tuple[Verdict, str]:
    """The rule above, and the reason in words where it says BACK. `now` in microseconds; `new` and `old` as counted in all."""
    if rollout.since is None:
        return Verdict.WATCH, ""
    if new.failed_starts >= FAILED_STARTS_MAX:
        return Verdict.BACK, f"{new.failed_starts} starts of its replicas failed"
    new = Counts(new.requests - rollout.new_requests, new.errors - rollout.new_errors)
    if new.requests >= REQUESTS_MIN and new.errors >= ERRORS_MIN:
        lately = Counts(old.requests - rollout.old_requests, old.errors - rollout.old_errors)
        usual = lately if lately.requests >= REQUESTS_MIN else old
        if new.share > usual.share + rollout.errors_max:
            text = f"{new.errors} of its {new.requests} requests failed ({new.share:.1%})"
            return Verdict.BACK, f"{text}, {usual.share:.1%} before"
    if now - rollout.since > WINDOW_S * 1e6:
        return Verdict.PROVED, ""
    return Verdict.WATCH, ""
