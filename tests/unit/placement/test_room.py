"""A room that is kept up to date answers as one that is booked anew."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from machines import GIB, machine_of, rail_8
from queues import small_machine
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.job import Plan, Resources
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.placement.refusal import Refusal
from steelyard.placement.room import Room

MACHINE = small_machine()

asked = st.builds(
    Resources,
    cpus=st.sampled_from([0.1, 0.5, 1, 2, 3, 7]),
    memory_bytes=st.none() | st.integers(1, 70).map(lambda size: size * GIB),
    timing=st.sampled_from([Timing.BEST_EFFORT, Timing.BEST_EFFORT, Timing.DEDICATED]),
    gpus=st.none() | st.none() | st.sampled_from(["1", "3", "H100:4", "0.5", "0.3:2", "A100"]).map(parse_gpu_demand),
    nics=st.integers(0, 2),
)


@settings(max_examples=60)
@given(steps=st.lists(st.tuples(asked, st.integers(0, 2), st.booleans()), max_size=14), last=asked)
def test_taking_and_releasing_is_as_good_as_booking_anew(steps: list[tuple[Resources, int, bool]], last: Resources) -> None:
    room, running = Room(MACHINE), list[tuple[Resources, Plan, bool]]()
    for demand, ends, suspended in steps:
        quick, answer = room.fits_quickly(demand), room.place(demand)
        assert quick or isinstance(answer, Refusal)
        if isinstance(answer, Plan):
            assert room.check(demand, answer) == ()
            room.take(demand, answer, suspended)
            running.append((demand, answer, suspended))
        for _ in range(min(ends, len(running))):
            room.release(*running.pop(0))
    anew = Room(MACHINE)
    for each in running:
        anew.take(*each)
    assert room.place(last) == anew.place(last) == room.copy().place(last)
    assert room.fits_quickly(last) == anew.fits_quickly(last)


@settings(max_examples=60)
@given(here=st.lists(asked, max_size=5), there=st.lists(asked, max_size=5), last=asked)
def test_a_plan_for_two_rooms_fits_both(here: list[Resources], there: list[Resources], last: Resources) -> None:
    rooms = (Room(MACHINE), Room(MACHINE))
    for room, demands in zip(rooms, (here, there), strict=True):
        for demand in demands:
            answer = room.place(demand)
            if isinstance(answer, Plan):
                room.take(demand, answer)
    plan = rooms[0].place(last, rooms[1:])
    if isinstance(plan, Plan):
        assert all(room.check(last, plan) == () for room in rooms)
    elif not last.whole_cores and last.gpus is None and not last.nics:
        assert any(isinstance(room.place(last), Refusal) for room in rooms), "shares fit where they fit in each"


def test_what_another_room_needs_is_kept_and_something_else_is_given() -> None:
    now, later = Room(MACHINE), Room(MACHINE)
    one = Resources(1, gpus=parse_gpu_demand("1"))
    first = now.place(one)
    assert isinstance(first, Plan)
    later.take(one, first)
    other = now.place(one, (later,))
    assert isinstance(other, Plan) and other.gpus != first.gpus
    later.take(Resources(1, gpus=parse_gpu_demand("3")), Plan(gpus=tuple(gpu.id for gpu in MACHINE.topology.gpus[1:])))  # type: ignore[union-attr]
    kept = now.place(one, (later,))
    assert isinstance(kept, Refusal) and kept.reasons == (Reason.RESERVED,) and not kept.never


def test_what_is_suspended_holds_its_memory_but_no_cores() -> None:
    room = Room(MACHINE)
    demand = Resources(4, 100 * GIB, timing=Timing.DEDICATED)
    plan = room.place(demand)
    assert isinstance(plan, Plan)
    room.take(demand, plan, suspended=True)
    assert room.fits_quickly(Resources(8)) and not room.fits_quickly(Resources(1, 40 * GIB))
    room.release(demand, plan, suspended=True)
    assert room.fits_quickly(Resources(1, 128 * GIB))


def test_a_copy_goes_its_own_way() -> None:
    room = Room(MACHINE)
    copy = room.copy()
    demand = Resources(2, 8 * GIB, exclusive=True, gpus=parse_gpu_demand("4"))
    plan = copy.place(demand)
    assert isinstance(plan, Plan)
    copy.take(demand, plan)
    assert room.place(demand) == plan and isinstance(copy.place(demand), Refusal)


def test_shares_of_a_gpu_add_up_to_a_whole_and_ranks_may_share_one() -> None:
    room = Room(machine_of(rail_8()))
    third = Resources(0.1, gpus=parse_gpu_demand("0.3"))
    assert room.fits_quickly(third, ranks=24) and not room.fits_quickly(third, ranks=25)
