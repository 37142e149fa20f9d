"""Who runs as whom, and what an agent keeps over its own death."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from steelyard.agent.answer import render_refusal
from steelyard.agent.identity import choose_ids, explain_start, make_env
from steelyard.agent.ledger import Ledger
from steelyard.config import Settings
from steelyard.errors import StoreDamaged
from steelyard.model.ids import FunctionName
from steelyard.model.job import Owner
from steelyard.model.reason import Reason
from steelyard.runtime.record_lane import RecordLane
from steelyard.wire.agent import Assignment

SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=64000, work_gid=64001, admin_user="root", admin_uid=0)
ROOT, ADA = Owner("root", 0), Owner("ada", 1000)


@pytest.mark.parametrize(
    ("owner", "as_root", "euid", "wanted"),
    [
        (ROOT, False, 0, (64000, 64001)),
        (ROOT, True, 0, (0, 0)),
        (ADA, False, 0, (1000, 1000)),
        (ADA, True, 0, (1000, 1000)),
        (ADA, False, 1000, None),
    ],
)
def test_roots_work_is_unprivileged_unless_an_admin_asks(owner, as_root, euid, wanted):
    assert choose_ids(owner, as_root, SETTINGS, euid) == wanted


def test_a_refusal_for_being_somebody_else_says_what_to_do():
    text = "j-1.1 not started: chdir: /root: Permission denied (as uid 64000)"
    assert "--as-root" in explain_start(text, (64000, 64000), ROOT)
    assert explain_start(text, (1000, 1000), ADA) == text
    assert explain_start("exec: x: No such file or directory", (64000, 64000), ROOT).endswith("directory")


def test_the_users_variables_win_over_the_base_but_not_over_who_it_really_is():
    env = make_env({"PATH": "/x", "USER": "root", "HOME": "/root", "A": "b"}, "/w", (64000, 64000), ROOT)
    assert (env["PATH"], env["A"], env["USER"], env["HOME"]) == ("/x", "b", "uid64000", "/w")
    assert make_env({"HOME": "/home/ada"}, "/w", (1000, 1000), ADA)["HOME"] == "/home/ada"


def test_an_older_assignment_is_refused_and_the_newest_survives(tmp_path: Path):
    ledger = Ledger(tmp_path, RecordLane())
    assert asyncio.run(ledger.accept(Assignment(epoch=2, generation=5, keys=("a",))))
    assert not asyncio.run(ledger.accept(Assignment(epoch=2, generation=4)))
    assert not asyncio.run(ledger.accept(Assignment(epoch=1, generation=9)))
    assert Ledger(tmp_path, RecordLane()).assignment.keys == ("a",)
    assert asyncio.run(ledger.accept(Assignment(epoch=3, generation=1)))


def test_what_was_noted_is_found_by_the_next_agent_and_still_accepted_by_this_one(tmp_path: Path):
    ledger = Ledger(tmp_path, RecordLane())
    newer = Assignment(epoch=2, generation=5, keys=("a",))
    assert ledger.follows(newer)
    ledger.note(newer)
    assert Ledger(tmp_path, RecordLane()).assignment == newer
    assert ledger.assignment.generation == 0, "what is only noted is not accepted"
    assert asyncio.run(ledger.accept(newer))
    assert not ledger.follows(Assignment(epoch=2, generation=4))


def test_what_an_older_agent_routed_is_read_as_the_whole_of_the_traffic(tmp_path: Path):
    spec = '{"file": "app.py", "attr": "app", "python": "/usr/bin/python3"}'
    old = '{"name": "f", "project": "default", "owner": {"user": "ann", "uid": 7}, "revision": 3, "spec": ' + spec + "}"
    (tmp_path / "routed.json").write_text('{"f": ' + old + "}")
    ledger = Ledger(tmp_path, RecordLane())
    (found,) = ledger.routed[FunctionName("f")]
    assert (found.revision, found.percent, found.tags) == (3, 100, ())
    both = (msgspec.structs.replace(found, percent=90), msgspec.structs.replace(found, revision=4, percent=10, tags=("next",)))
    ledger.set_routed(FunctionName("f"), both)
    assert Ledger(tmp_path, RecordLane()).routed == {"f": both}
    ledger.set_routed(FunctionName("f"), ())
    assert Ledger(tmp_path, RecordLane()).routed == {}


def test_a_damaged_file_stops_the_agent_with_its_name(tmp_path: Path):
    (tmp_path / "assignment.json").write_bytes(b'{"epoch": 1, "gener')
    with pytest.raises(StoreDamaged, match=r"assignment\.json"):
        Ledger(tmp_path, RecordLane())


def test_a_refusal_is_a_whole_response_that_says_when_to_come_back():
    head, body = render_refusal(Reason.STARTUP_DEADLINE, "too slow", 3).split(b"\r\n\r\n")
    assert b"503" in head and b"retry-after: 3" in head and f"content-length: {len(body)}".encode() in head
    assert b'"code": "startup-deadline"' in body
