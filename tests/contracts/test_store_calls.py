"""Do both stores keep durable calls as `steelyard.store` promises?"""

from __future__ import annotations

from steelyard.model.call import CallState
from steelyard.model.ids import CallId
from stores import Held, make_call, make_event


def test_calls_are_listed_by_function_and_state_the_newest_kept(held: Held) -> None:
    held.write(lambda tx: [tx.put_call(make_call(name, function=function)) for name, function in ("af", "bg", "cf")])
    held.write(lambda tx: tx.put_call(make_call("a", 2, ended_at=9, function="f")))

    def ids(*asked: object) -> list[str]:
        return [call.id for call in held.read(lambda tx: tx.calls(*asked))]

    assert ids() == ["a", "b", "c"] and ids(None, None, 2) == ["b", "c"] and ids(None, None, 0) == []
    assert ids("f") == ["a", "c"] and ids("f", {CallState.QUEUED}) == ["c"] and ids(None, {CallState.SUCCEEDED}) == ["a"]
    assert held.read(lambda tx: tx.call(CallId("a"))) == make_call("a", 2, ended_at=9, function="f")
    assert held.read(lambda tx: (tx.call(CallId("z")), tx.call_ids())) == (None, {"a", "b", "c"})


def test_what_changed_of_calls_comes_once_and_as_it_is_now(held: Held) -> None:
    held.write(lambda tx: [tx.put_call(make_call(name)) for name in "abc"])
    held.write(lambda tx: tx.put_call(make_call("c", 2, ended_at=9)))
    seen, alive = held.read(lambda tx: tx.calls_changed(0))
    assert [call.id for call in alive] == ["a", "b"]
    assert held.read(lambda tx: tx.calls_changed(seen)) == (seen, [])
    held.write(
        lambda tx: [tx.put_call(make_call("b", 2)), tx.put_call(make_call("b", 3, ended_at=9)), tx.put_call(make_call("d"))]
    )
    newest, changed = held.read(lambda tx: tx.calls_changed(seen))
    assert newest > seen
    assert sorted((call.id, call.generation) for call in changed) == [("b", 3), ("d", 1)]


def test_calls_are_forgotten_by_their_end_and_changes_are_still_seen_when_all_are_gone(held: Held) -> None:
    for name, ended_at in (("a", 5), ("b", 7), ("c", None), ("d", 6)):
        held.write(lambda tx, name=name, ended_at=ended_at: tx.put_call(make_call(name, ended_at=ended_at)))
        held.write(lambda tx, name=name: tx.add_event(make_event(1, "call", name)))
    seen, _ = held.read(lambda tx: tx.calls_changed(0))
    assert held.write(lambda tx: tx.forget_calls(8, 1)) == ["a"]
    assert held.write(lambda tx: tx.forget_calls(8, 10)) == ["b"], "d changed last: its number must not be given again"
    assert [event.subject for event in held.read(lambda tx: tx.events("call"))] == ["c", "d"]
    held.write(lambda tx: tx.put_call(make_call("e")))
    assert [call.id for call in held.read(lambda tx: tx.calls_changed(seen))[1]] == ["e"]
