"""How are many rows asked at a time, and answered in order? A window of rows in flight, and what a refusal means.

`Asker` asks one row and tries again where that helps; `Pipeline` keeps N of them busy and hands answers on in the rows' order.
Memory is bounded by both: rows asked or answered ahead of the oldest one that is still open are counted, and so are their bytes.
A row may be executed more than once (a connection that was lost, a batch that was killed), but it has one line in the output.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import msgspec

from steelyard.cli.batch_files import Answer, Row
from steelyard.clock import Clock
from steelyard.errors import NotFound, SteelyardError, Unauthorized, Unreachable
from steelyard.wire.api import Problem

if TYPE_CHECKING:
    import httpx2

#: the first wait before another try; twice as long before each further one
BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0
#: a longer Retry-After is not believed
RETRY_AFTER_MAX_S = 300.0
ANSWER_MAX = 64 << 20
#: answers that wait for an older row, in bytes and in multiples of --parallel
HELD_BYTES_MAX = 64 << 20
AHEAD = 4
_MESSAGE_MAX = 500
#: refusals by which the gateway means all rows, not this one
_FOR_ALL = {"key-required": Unauthorized, "function-not-found": NotFound}


class Trial(msgspec.Struct, frozen=True):
    """What came back from one try. Status None: nothing did."""

    status: int | None
    body: bytes = b""
    is_json: bool = False
    retry_after: str | None = None
    message: str = ""
    #: nobody listened at the gateway's address
    unreachable: bool = False
    #: not tried again: what takes that long once takes it twice
    timed_out: bool = False


class TooManyErrors(SteelyardError):
    """More rows failed than the user wanted to see."""

    code = "too-many-errors"


def decide_wait(trial: Trial, tries: int, retries: int, jitter: float, now_us: int) -> float | None:
    """Seconds until the next try; None when another would not help or none is left. `tries`: those made, >= 1; `jitter`: 0..1."""
    lost = trial.status is None and not trial.timed_out
    if tries > retries or not (lost or trial.status in (429, 503) or _code(trial) == "replica-lost"):
        return None
    told_s = parse_retry_after(trial.retry_after, now_us)
    backoff_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(tries - 1, 16))
    # never all at once: they were refused because they came together
    return max(told_s, backoff_s / 2) + jitter * backoff_s / 2


def parse_retry_after(text: str | None, now_us: int) -> float:
    """Seconds, or a date of HTTP; 0.0 where it says nothing that can be understood."""
    if text is None:
        return 0.0
    if text.strip().isascii() and text.strip().isdigit():
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        at_s = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, at_s - now_us / 1e6), RETRY_AFTER_MAX_S)


def make_answer(number: int, trial: Trial) -> Answer:
    """Its line of the output: JSON on one line; a text as a JSON string; nothing as null."""
    if trial.message or trial.status is None or not 200 <= trial.status < 300:
        return Answer(number, None, trial.status, trial.message or _explain(trial))
    if not trial.body.strip():
        return Answer(number, b"null", trial.status)
    try:
        text = trial.body.decode()
    except UnicodeDecodeError:
        return Answer(number, None, trial.status, "the answer is neither JSON nor text")
    try:
        msgspec.json.decode(trial.body)
    except (msgspec.MsgspecError, RecursionError) as err:
        if trial.is_json:
            return Answer(number, None, trial.status, f"the answer calls itself JSON and is not: {err}")
        return Answer(number, msgspec.json.encode(text), trial.status)
    return Answer(number, msgspec.json.format(trial.body, indent=-1), trial.status)


def find_general(trial: Trial, function: str) -> SteelyardError | None:
    """A refusal that every further row would meet too."""
    if trial.unreachable:
        return Unreachable("The gateway does not answer. `steelyard status` shows what is down, `steelyard up` starts it.")
    kind = _FOR_ALL.get(_code(trial))
    if kind is Unauthorized:
        return Unauthorized(f"{function} is private, and the key does not fit. `steelyard keys` lists those that do.")
    return NotFound(f"There is no function {function}. `steelyard functions` lists them.") if kind else None


def _code(trial: Trial) -> str:
    """The gateway's own word; "" for what a function answered."""
    problem = _problem(trial)
    return problem.code if problem is not None and problem.type == "about:blank" else ""


def _problem(trial: Trial) -> Problem | None:
    if not trial.is_json or trial.status is None or trial.status < 400:
        return None
    try:
        return msgspec.json.decode(trial.body, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _explain(trial: Trial) -> str:
    problem = _problem(trial)
    if problem is not None:
        return problem.detail or problem.title
    return trial.body[: 4 * _MESSAGE_MAX].decode(errors="replace").strip()[:_MESSAGE_MAX] or f"status {trial.status}"


class Asker:
    """Rows become POSTs to `url`. `sleep` and `chance` are arguments for the tests' sake."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        url: str,
        function: str,
        clock: Clock,
        *,
        retries: int,
        timeout_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._url = url
        self._function = function
        self._clock = clock
        self._retries = retries
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._chance = chance
        #: tries beyond the first of each row
        self.retried = 0

    async def ask(self, row: Row) -> Answer:
        """Raises what would befall all other rows too."""
        tries = 0
        while True:
            trial = await self._try(row)
            tries += 1
            wait_s = decide_wait(trial, tries, self._retries, self._chance(), self._clock.now_us())
            if wait_s is None:
                break
            self.retried += 1
            await self._sleep(wait_s)
        if (general := find_general(trial, self._function)) is not None:
            raise general
        return make_answer(row.number, trial)

    async def _try(self, row: Row) -> Trial:
        import httpx2

        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            async with asyncio.timeout(self._timeout_s):
                async with self._client.stream("POST", self._url, content=row.body, headers=headers) as answer:
                    return await _read(answer)
        except TimeoutError:
            return Trial(None, message=f"no answer within {self._timeout_s:g} s", timed_out=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as err:
            return Trial(None, message=f"the gateway can't be reached: {err}", unreachable=True)
        except httpx2.TransportError as err:
            return Trial(None, message=f"the connection was lost: {str(err) or type(err).__name__}")


async def _read(answer: httpx2.Response) -> Trial:
    import httpx2

    body = bytearray()
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > ANSWER_MAX:
                return Trial(answer.status_code, message=f"the answer is larger than {ANSWER_MAX >> 20} MiB")
    except httpx2.DecodingError as err:
        return Trial(answer.status_code, message=f"the answer can't be decompressed: {err}")
    is_json = kind == "application/json" or kind.endswith("+json")
    return Trial(answer.status_code, bytes(body), is_json, answer.headers.get("retry-after"))


class Pipeline:
    """Answers in the order of rows, each as soon as those before it are there."""

    def __init__(
        self,
        rows: Iterator[Row],
        ask: Callable[[Row], Awaitable[Answer]],
        emit: Callable[[Sequence[Answer]], None],
        *,
        done: int,
        parallel: int,
        errors_max: int | None = None,
    ) -> None:
        self._rows = rows
        self._ask = ask
        self._emit = emit
        self._parallel = parallel
        self._errors_max = errors_max
        #: numbers of the newest rows that were taken, and handed on
        self._taken = self._done = done
        self._held: dict[int, Answer] = {}
        self._held_bytes = 0
        self._failed = 0
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Until every row is handed on. Raises TooManyErrors, what `ask` raises, and what reading or writing raises."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._parallel)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            while not self._has_room():
                self._moved.clear()
                await self._moved.wait()
            row = next(self._rows, None)
            if row is None:
                return
            self._taken = row.number
            if row.error:
                answer = Answer(row.number, None, None, row.error)
                # let signals and other rows be heard among a million bad lines
                await asyncio.sleep(0)
            else:
                answer = await self._ask(row)
            self._held[row.number] = answer
            self._held_bytes += len(answer.line or b"")
            self._hand_on()

    def _has_room(self) -> bool:
        return self._taken - self._done < self._parallel * AHEAD and self._held_bytes < HELD_BYTES_MAX

    def _hand_on(self) -> None:
        ready: list[Answer] = []
        while (answer := self._held.pop(self._done + 1 + len(ready), None)) is not None:
            ready.append(answer)
        if not ready:
            return
        self._emit(ready)
        self._done += len(ready)
        self._held_bytes -= sum(len(answer.line or b"") for answer in ready)
        self._failed += sum(answer.line is None for answer in ready)
        self._moved.set()
        if self._errors_max is not None and self._failed > self._errors_max:
            raise TooManyErrors(f"{self._failed} rows failed, more than --max-errors {self._errors_max}.")
