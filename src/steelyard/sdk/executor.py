"""How do inputs run in a replica, never more than `limit` at a time? Coroutines on the event loop, everything else in threads.

A request's inputs are a `Work`. Threads take its inputs in order, in groups that last a few milliseconds, and say before each
group that it begins (STARTED), so that after a crash the caller knows what was not touched. Results go out as soon as they are
there.

An input that runs longer than `timeout_s` is answered at once. Whatever still runs of it can't be ended without ending the
process, so the replica takes nothing new, lets the others finish, and leaves for good (`retire`); the same when a caller goes
away and what ran for it does not end soon. Inputs that were not begun stay unanswered, and the caller asks for them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import inspect
import json
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import AsyncGeneratorType, GeneratorType
from typing import Any

import steelyard.sdk as sdk
from steelyard.sdk import frames, payload
from steelyard.sdk.errors import CallTimeout, PayloadError
from steelyard.sdk.frames import Buffer
from steelyard.sdk.look import is_async

#: a group of inputs is meant to last this long (a crash costs the group), and has at most this many
GROUP_NS = 300_000
GROUP_MAX = 1024
#: results wait this long for others to leave with
COALESCE_NS = 1_000_000
#: a generator waits while this much of what it yielded is not sent
UNSENT_MAX = 1 << 20
#: an event loop that does not turn for so long after a deadline is taken for stuck: the process ends
STUCK_S = 10.0
#: how long something may go on that nobody waits for any more
CANCEL_S = 2.0
_NOT_BEGUN = json.dumps({"code": frames.NOT_BEGUN, "type": "", "text": "its replica is being replaced", "traceback": ""}).encode()


class Method:
    """A function of the user's, or a method bound to the replica's instance."""

    def __init__(self, name: str, function: Callable[..., Any], label: str, timeout_s: float | None) -> None:
        self.name = name
        self.function = function
        self.label = label
        self.timeout_s = timeout_s
        self.on_loop = is_async(function)
        #: of one input, smoothed; 0: none has run yet
        self.mean_ns = 0.0

    def group(self) -> int:
        return 1 if not self.mean_ns else max(1, min(GROUP_MAX, int(GROUP_NS / self.mean_ns)))

    def note(self, ran_ns: int) -> None:
        self.mean_ns = self.mean_ns * 0.8 + ran_ns * 0.2 if self.mean_ns else float(ran_ns)

    def answer(self, id: int, value: Any) -> list[Buffer]:
        try:
            return frames.encode(frames.RESULT, id, payload.dumps(value, f"The result of {self.label}"))
        except PayloadError as err:
            return self.fail(id, err, frames.PAYLOAD)

    def yielded(self, id: int, item: Any) -> list[Buffer]:
        return frames.encode(frames.YIELD, id, payload.dumps(item, f"What {self.label} yielded"))

    def fail(self, id: int, err: BaseException, code: str = frames.RAISED) -> list[Buffer]:
        if code == frames.RAISED:
            sys.stderr.write(payload.user_traceback(err, payload.OURS))
        return frames.encode(frames.ERROR, id, payload.dumps_error(err, code, payload.OURS))

    def read(self, segments: Sequence[Buffer]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            args, kwargs = payload.loads(segments)
        except BaseException as err:
            raise PayloadError(
                f"The arguments of {self.label} can't be read in the replica: {type(err).__name__}: {err}. "
                "What they are made of must be importable there."
            ) from err
        return args, kwargs

    def timed_out(self, id: int) -> list[Buffer]:
        return self.fail(id, CallTimeout(self.timeout_text()), frames.TIMEOUT)

    def timeout_text(self) -> str:
        return f"{self.label} ran longer than its timeout of {self.timeout_s:g} s and was given up; its replica is replaced."


class Work:
    """The inputs of one request. `pending` and `taken` belong to whoever holds `lock`; `out` is filled by threads and emptied by
    the loop: buffers, and locks or futures of those who wait until what stands before them was sent."""

    def __init__(self, method: Method, inputs: list[frames.Frame], loop: asyncio.AbstractEventLoop) -> None:
        self.method = method
        self.total = len(inputs)
        self.pending = deque(inputs)
        self.taken = 0
        self.lock = threading.Lock()
        self.out: deque[Any] = deque()
        self.wakeup = asyncio.Event()
        #: nobody listens any more: the caller has gone, or everything was sent
        self.closed = False
        #: inputs that have begun and not ended; loop and threads change it under `lock`
        self.running = 0
        self.ran_ns = 0
        self.unsent = 0
        #: the caller has gone before its answer was complete
        self.gone = False
        #: one of its inputs raised, or ran for too long
        self.failed = False
        self.watcher: asyncio.Task[None] | None = None
        self._loop = loop
        self._poked = False

    # -- by whoever runs inputs

    def take(self, count: int) -> list[frames.Frame]:
        with self.lock:
            if self.closed:
                return []
            group = [self.pending.popleft() for _ in range(min(count, len(self.pending)))]
            self.taken += len(group)
            self.running += len(group)
            if group and self.total > 1:
                self.out.append(b"".join(frames.encode(frames.STARTED, self.taken)))
            return group

    def put(self, buffers: list[Buffer]) -> None:
        self.out.extend(buffers)

    def ended(self, ran_ns: int) -> None:
        with self.lock:
            self.running -= 1
            self.ran_ns += ran_ns

    def poke(self) -> None:
        """Have the loop look at `out`."""
        if not self._poked and not self.closed:
            self._poked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(self.wakeup.set)

    def wait_sent(self) -> bool:
        """In a thread: until all that stands in `out` was handed to the kernel. False when the caller has gone."""
        waiting = threading.Lock()
        waiting.acquire()
        self.out.append(waiting)
        if self.closed:
            return False
        self.poke()
        waiting.acquire()
        return not self.closed

    async def until_sent(self) -> bool:
        """The same on the loop."""
        waiting: asyncio.Future[None] = self._loop.create_future()
        self.out.append(waiting)
        if self.closed:
            return False
        self.wakeup.set()
        await waiting
        return not self.closed

    # -- by the loop

    def drop_pending(self) -> None:
        """Nothing more begins."""
        with self.lock:
            self.pending.clear()
        self.wakeup.set()

    @property
    def complete(self) -> bool:
        """Nothing more will come."""
        with self.lock:
            return self.closed or (not self.running and not self.pending)

    def drain(self) -> tuple[list[Buffer], list[Any]]:
        """What is to be sent, and who waits for it."""
        self._poked = False
        self.wakeup.clear()
        buffers: list[Buffer] = []
        waiting: list[Any] = []
        while self.out:
            item = self.out.popleft()
            if isinstance(item, bytes | bytearray | memoryview):
                buffers.append(item)
            else:
                waiting.append(item)
        return buffers, waiting

    def close(self) -> None:
        self.closed = True
        self.drop_pending()
        release(self.drain()[1])


def release(waiting: list[Any]) -> None:
    for one in waiting:
        if not isinstance(one, asyncio.Future):
            one.release()
        elif not one.done():
            one.set_result(None)


class Slot:
    """What one thread, or one task, is doing right now."""

    __slots__ = ("began", "group", "task", "token", "work")

    def __init__(self) -> None:
        self.work: Work | None = None
        self.began = 0
        #: [id] of the input while nobody answered for it; a list of its own for each input, set last and read first
        self.token: list[int] = []
        #: of a thread: what it will begin next
        self.group: deque[frames.Frame] = deque()
        self.task: asyncio.Task[None] | None = None

    def begin(self, work: Work, id: int) -> list[int]:
        self.work = work
        self.began = time.perf_counter_ns()
        self.token = token = [id]
        return token


def claim(token: list[int]) -> bool:
    """May I answer for this input? `list.pop` is one step of the interpreter: of thread and loop only one gets it."""
    try:
        token.pop()
    except IndexError:
        return False
    return True


class Executor:
    """`retire` asks the process to take nothing new and to end when it is quiet; a parameter for tests."""

    def __init__(self, limit: int, retire: Callable[[], None] | None = None) -> None:
        self._limit = limit
        self._retire = retire
        self._tokens: queue.SimpleQueue[Work]
        self._slots: set[Slot] = set()
        self._threads = 0
        self._works: set[Work] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room: asyncio.Semaphore | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: nothing begins any more
        self.retiring = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Once an input was started."""
        assert self._loop is not None
        return self._loop

    def start(self, method: Method, inputs: list[frames.Frame]) -> Work:
        """Begin to work on a request's inputs. The caller sends what comes out and calls `finish` in any case."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        work = Work(method, inputs, loop)
        if self.retiring:
            work.drop_pending()
            return work
        self._works.add(work)
        if method.timeout_s is not None:
            self._watch(method.timeout_s)
        if method.on_loop:
            self._spawn(self._run_on_loop(work))
            return work
        wanted = sum(min(one.total, self._limit) for one in self._works)
        if not self._threads:
            self._tokens = queue.SimpleQueue()
        while self._threads < min(wanted, self._limit):
            self._threads += 1
            threading.Thread(target=self._be_thread, name=f"steelyard-input-{self._threads}", daemon=True).start()
        for _ in range(min(work.total, self._limit)):
            self._tokens.put(work)
        return work

    def finish(self, work: Work) -> None:
        """The answer is complete, or its caller has gone: then what still runs for it is in nobody's interest."""
        self._works.discard(work)
        if work.watcher is not None and not work.gone:
            work.watcher.cancel()
        work.close()
        if work.running:
            self._abandon([slot for slot in list(self._slots) if slot.token and slot.work is work])

    # -- threads

    def _be_thread(self) -> None:
        slot = Slot()
        self._slots.add(slot)
        while True:
            self._help(self._tokens.get(), slot)

    def _help(self, work: Work, slot: Slot) -> None:
        method = work.method
        told = time.perf_counter_ns()
        while not self.retiring:
            group = work.take(method.group())
            if not group:
                return
            if work.total > 1 and not work.wait_sent():
                return
            slot.group.extend(group)
            while slot.group:
                frame = slot.group.popleft()
                token = slot.begin(work, frame.id)
                buffers = self._run_in_thread(work, frame, token)
                now = time.perf_counter_ns()
                ran = now - slot.began
                slot.token = []
                if not claim(token):
                    return  # it was answered as timed out, or its caller has gone
                method.note(ran)
                work.put(buffers)
                work.ended(ran)
                if now - told > COALESCE_NS or work.total == 1:
                    told = now
                    work.poke()
            work.poke()

    def _run_in_thread(self, work: Work, frame: frames.Frame, token: list[int]) -> list[Buffer]:
        method = work.method
        try:
            args, kwargs = method.read(frame.segments)
        except PayloadError as err:
            return method.fail(frame.id, err, frames.PAYLOAD)
        try:
            value = method.function(*args, **kwargs)
            if isinstance(value, GeneratorType):
                for item in value:
                    self._yield(work, method, frame.id, item)
                    work.poke()
                    if work.unsent > UNSENT_MAX:
                        work.unsent = 0
                        work.wait_sent()
                    if not token:
                        value.close()
                        return []
                return frames.encode(frames.END, frame.id)
            if inspect.iscoroutine(value) and self._loop is not None:
                value = asyncio.run_coroutine_threadsafe(value, self._loop).result()
        except BaseException as err:
            work.failed = True
            return method.fail(frame.id, err)
        return method.answer(frame.id, value)

    def _yield(self, work: Work, method: Method, id: int, item: Any) -> None:
        """PayloadError when it can't travel: raised in the generator's consumer, which is us, and so the input's error."""
        buffers = method.yielded(id, item)
        work.unsent += sum(map(len, buffers))
        work.put(buffers)

    # -- the event loop

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_on_loop(self, work: Work) -> None:
        room = self._room = self._room or asyncio.Semaphore(self._limit)
        while not self.retiring:
            await room.acquire()
            count = 1
            while count < len(work.pending) and not room.locked():
                await room.acquire()
                count += 1
            group = work.take(count)
            for _ in range(count - len(group)):
                room.release()
            if not group:
                return
            if work.total > 1:
                await work.until_sent()
            for frame in group:
                slot = Slot()
                token = slot.begin(work, frame.id)
                self._slots.add(slot)
                slot.task = self._spawn(self._run_one(work, frame, slot, token, room))

    async def _run_one(self, work: Work, frame: frames.Frame, slot: Slot, token: list[int], room: asyncio.Semaphore) -> None:
        method = work.method
        buffers: list[Buffer] = []
        try:
            buffers = await self._await_one(work, frame)
        except asyncio.CancelledError as err:
            if token:  # not by us
                buffers = method.fail(frame.id, err)
        finally:
            self._slots.discard(slot)
            slot.token = []
            room.release()
        if claim(token):
            work.put(buffers)
            work.ended(time.perf_counter_ns() - slot.began)
            work.wakeup.set()

    async def _await_one(self, work: Work, frame: frames.Frame) -> list[Buffer]:
        method = work.method
        try:
            args, kwargs = method.read(frame.segments)
        except PayloadError as err:
            return method.fail(frame.id, err, frames.PAYLOAD)
        try:
            value = method.function(*args, **kwargs)
            if isinstance(value, AsyncGeneratorType):
                async for item in value:
                    self._yield(work, method, frame.id, item)
                    work.wakeup.set()
                    if work.unsent > UNSENT_MAX:
                        work.unsent = 0
                        await work.until_sent()
                return frames.encode(frames.END, frame.id)
            value = await value
        except asyncio.CancelledError:
            raise
        except BaseException as err:
            work.failed = True
            return method.fail(frame.id, err)
        return method.answer(frame.id, value)

    # -- deadlines

    def _watch(self, timeout_s: float) -> None:
        """One timer for all inputs; and a watchdog that needs no Python, for code that never gives the interpreter back."""
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(timeout_s, self._look)
            faulthandler.dump_traceback_later(timeout_s + STUCK_S, exit=True)

    def _look(self) -> None:
        self._timer = None
        now = time.perf_counter_ns()
        next_s = [work.method.timeout_s for work in self._works if work.method.timeout_s is not None and not work.complete]
        for slot in list(self._slots):
            token, began, work = slot.token, slot.began, slot.work
            if not token or work is None or work.method.timeout_s is None:
                continue
            left_s = work.method.timeout_s - (now - began) / 1e9
            if left_s > 0:
                next_s.append(left_s)
            else:
                self._expire(slot, work, token, now - began)
        if next_s:
            self._watch(max(0.001, min(next_s)))
        else:
            faulthandler.cancel_dump_traceback_later()

    def _expire(self, slot: Slot, work: Work, token: list[int], ran_ns: int) -> None:
        answer = work.method.timed_out(token[0] if token else 0)
        if not claim(token):
            return
        work.failed = True
        if slot.task is None:
            self.retire()  # first, so that the answer says `Connection: close`
        else:
            self._cancel(slot)
        work.put(answer)
        work.ended(ran_ns)
        while slot.group:  # announced, but its thread will never come to them
            work.put(frames.encode(frames.ERROR, slot.group.popleft().id, [_NOT_BEGUN, b""]))
            work.ended(0)
        work.wakeup.set()

    def _abandon(self, slots: list[Slot]) -> None:
        """Their caller has gone. What does not end soon costs the replica."""
        for slot in slots:
            if claim(slot.token):
                self._cancel(slot)

    def _cancel(self, slot: Slot) -> None:
        """`slot`'s input was answered for. A thread can only be waited for."""
        token, task = slot.token, slot.task
        if task is not None:
            task.cancel()
        if self._loop is not None:
            self._loop.call_later(CANCEL_S, lambda: self.retire() if slot.token is token else None)

    def retire(self) -> None:
        """Replace this replica: something runs in it that can't be ended otherwise."""
        if self.retiring:
            return
        self.retiring = True
        for work in self._works:
            work.drop_pending()
        sdk.exits.insert(0, _leave_for_good)  # they run the other way round: after all of the user's
        (self._retire or _ask_to_retire)()


def _ask_to_retire() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_for_good() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)
