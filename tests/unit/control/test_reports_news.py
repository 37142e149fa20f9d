"""Of a thousand functions in each report only those count that say something new."""

from __future__ import annotations

from steelyard.control.reports import FULL_NS, News
from steelyard.model.function import FunctionState
from steelyard.model.ids import FunctionName, MachineId
from steelyard.wire.agent import FunctionSeen, Report


def report(**replicas: int) -> Report:
    functions = tuple(FunctionSeen(FunctionName(name), 1, FunctionState.RUNNING, replicas=n) for name, n in replicas.items())
    return Report(1, MachineId("m"), "boot", 1, functions=functions)


def names(picked: Report) -> list[str]:
    return [each.name for each in picked.functions]


def test_what_was_applied_counts_again_only_when_it_has_changed() -> None:
    news = News()
    assert names(news.pick(report(a=1, b=0), 0)) == ["a", "b"]
    assert names(news.pick(report(a=1, b=0), 1)) == ["a", "b"], "it was not stored"
    news.applied(report(a=1, b=0))
    assert names(news.pick(report(a=1, b=2, c=1), 2)) == ["b", "c"]


def test_a_function_that_went_and_came_back_counts_anew() -> None:
    news = News()
    news.pick(report(a=1), 0)
    news.applied(report(a=1))
    news.applied(report())
    assert names(news.pick(report(a=1), 1)) == ["a"]


def test_after_a_while_all_of_a_report_counts() -> None:
    news = News()
    news.pick(report(a=1), 0)
    news.applied(report(a=1))
    assert names(news.pick(report(a=1), FULL_NS - 1)) == []
    assert names(news.pick(report(a=1), FULL_NS)) == ["a"]
