"""Which logs does a job have, and how are they asked for? One; one per rank of a gang; those of all elements of an array."""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.cli.attend import END, START, Cursor, cursor_after
from steelyard.cli.follow import Followers, Printer, Stream
from steelyard.cli.patience import Patience
from steelyard.cli.session import quote
from steelyard.clock import Clock
from steelyard.wire.api import JobView, LogChunk
from steelyard.wire.http import ApiClient

#: an array is looked at this often at most, and for a tenth of the time at most
LOOK_S = 0.3
LOOK_SHARE = 10
ELEMENTS_MAX = 10_000


def poll_job(client: ApiClient, job: str, cursor: Cursor, wait_s: float, rank: int | None = None) -> LogChunk:
    params: dict[str, str | int | float] = {**cursor.params, "wait_s": wait_s}
    if rank is not None:
        params["rank"] = rank
    return client.fetch(LogChunk, "GET", f"/v1/jobs/{quote(job)}/logs", params=params, wait_s=wait_s)


def find_end(client: ApiClient, job: str, rank: int | None = None) -> Cursor:
    """Where its log ends now. Its start, where there is none yet."""
    after = cursor_after(poll_job(client, job, END, 0.0, rank))
    # what can't be read answers with the offset that was asked for
    return START if not after.attempt or END.stdout in (after.stdout, after.stderr) else after


def make_streams(client: ApiClient, patience: Patience, job: JobView, prefix: str = "") -> list[Stream]:
    """One per log of a job that is no array, in the order of its ranks. `prefix` comes before the rank, or alone."""

    def make(label: str, rank: int | None) -> Stream:
        return Stream(
            label,
            lambda cursor, wait_s: patience.call(lambda: poll_job(client, job.id, cursor, wait_s, rank), "its output"),
        )

    if job.log_streams == 1:
        return [make(prefix or "0", None)]
    return [make(f"{prefix}.{rank}" if prefix else str(rank), rank) for rank in range(job.log_streams)]


def list_elements(client: ApiClient, array: str, states: str | None = None) -> list[JobView]:
    params: dict[str, str | int | float] = {"array": array, "limit": ELEMENTS_MAX}
    if states is not None:
        params["state"] = states
    return client.fetch(list[JobView], "GET", "/v1/jobs", params=params)


def print_array(client: ApiClient, patience: Patience, array: str, begin: Cursor) -> None:
    """What all elements have written so far, one after the other."""
    elements = [job for job in list_elements(client, array) if job.attempt]
    print_streams([each for job in elements for each in make_streams(client, patience, job, str(job.array_index))], begin)


def print_streams(streams: Sequence[Stream], begin: Cursor) -> None:
    """What is in these logs, one after the other."""
    printer = Printer(max((len(stream.label) for stream in streams), default=1))
    for stream in streams:
        cursor, before = begin, None
        while cursor != before:
            before = cursor
            chunk = stream.poll(cursor, 0.0)
            printer.write(stream.label, chunk)
            cursor = cursor_after(chunk)
    printer.finish()


def follow_array(client: ApiClient, patience: Patience, array: str, clock: Clock, begin: Cursor) -> None:
    """What all elements write, as it comes, until the last has ended."""
    followers, followed, over = Followers(), set[str](), False
    printer: Printer | None = None
    while not over or followers.open:
        if not over:
            began_ns = clock.mono_ns()
            elements = patience.call(lambda: list_elements(client, array), "its output")
            pause_s = rest_after(clock.mono_ns() - began_ns)
            printer = printer or Printer(max(len(_label(job)) for job in elements))
            for job in elements:
                if job.attempt and job.id not in followed:
                    followed.add(job.id)
                    for stream in make_streams(client, patience, job, str(job.array_index)):
                        followers.add(stream, begin)
            over = all(job.ended_at is not None for job in elements)
        else:
            pause_s = 1.0
        assert printer is not None
        _write_for(followers, printer, clock, pause_s)


def rest_after(took_ns: int) -> float:
    """Seconds until the next look at something whose look took so long."""
    return max(LOOK_S, LOOK_SHARE * took_ns / 1e9)


def _write_for(followers: Followers, printer: Printer, clock: Clock, pause_s: float) -> None:
    """Write what comes in that time."""
    until_ns = clock.mono_ns() + int(pause_s * 1e9)
    while (left_s := (until_ns - clock.mono_ns()) / 1e9) > 0:
        if followers.wait(left_s):
            write_taken(followers, printer)
            if not followers.open:
                return


def write_taken(followers: Followers, printer: Printer) -> list[LogChunk]:
    """Write what came; the last chunks of those that ended."""
    taken = followers.take()
    for stream, chunk in taken:
        printer.write(stream.label, chunk)
    return [chunk for _, chunk in taken if chunk.ended]


def _label(job: JobView) -> str:
    return f"{job.array_index}.{job.log_streams - 1}" if job.log_streams > 1 else str(job.array_index)
