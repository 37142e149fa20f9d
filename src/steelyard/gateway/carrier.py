"""How does a durable call reach its function, and its answer the disk? One request through Envoy, streamed from file to file.

Never raises but when it is cancelled: what came is an `Outcome`. Never retries.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import msgspec

from steelyard.config import Settings
from steelyard.gateway.post import Answer, Cut, Gateway, NoConnection
from steelyard.lifecycle.call import Came, Outcome, is_refusal
from steelyard.model.call import Call
from steelyard.wire.api import Problem
from steelyard.wire.call_frames import CALL_PATH, CONTENT_TYPE, AnswerFrames
from steelyard.wire.landing import Landing

PIECE_BYTES = 1 << 18
#: what a function is asked with by the clock, as JSON
NO_ARGUMENTS = b"{}"
#: of a problem document, which is read
PROBLEM_MAX = 1 << 16


class GatewayCarrier:
    """Implements `control.calls.Carrier`."""

    def __init__(self, settings: Settings) -> None:
        self._gateway = Gateway(settings.gateway_host, settings.gateway_port)

    def close(self) -> None:
        self._gateway.close()

    async def carry(self, call: Call, key: str, input: Path, result: Path) -> Outcome:
        try:
            first, rest = (NO_ARGUMENTS, None) if call.schedule else await asyncio.to_thread(_open, input, call.input_bytes)
        except OSError as err:
            return Outcome(Came.LOST_INPUT, detail=str(err))
        size_bytes = len(first) if rest is None else call.input_bytes
        try:
            return await self._ask(call, key, size_bytes, _pieces(first, rest), result)
        except NoConnection as err:
            return Outcome(Came.UNSENT, detail=str(err))
        except Cut as err:
            return Outcome(Came.CUT, detail=str(err))
        except OSError as err:
            full = err.errno in (errno.ENOSPC, errno.EDQUOT)
            return Outcome(Came.UNKEPT, detail="the disk is full" if full else os.strerror(err.errno or 0))
        finally:
            if rest is not None:
                os.close(rest)

    async def _ask(self, call: Call, key: str, size_bytes: int, body: AsyncIterator[bytes], result: Path) -> Outcome:
        path = f"/{quote(call.function)}{CALL_PATH}" + (f"/{quote(call.method)}" if call.method else "")
        headers = {
            "Authorization": f"Bearer {key}",
            "Content-Length": str(size_bytes),
            # the same for every attempt, so that a function can tell a repetition
            "Idempotency-Key": call.id,
        }
        if call.content_type:
            headers["Content-Type"] = call.content_type
        async with self._gateway.post(path, headers, body) as answer:
            try:
                return await _keep(answer, result)
            except Cut:
                # the gateway lives, or so it seems: the function went away in the middle of its answer
                return Outcome(Came.ANSWERED, 502, detail="the replica went away in the middle of its answer")
            except ValueError as err:
                return Outcome(Came.ANSWERED, 502, detail=f"its answer can't be read: {err}")


async def _keep(answer: Answer, result: Path) -> Outcome:
    kind = answer.headers.get("content-type", "")
    frames = AnswerFrames() if kind.partition(";")[0].strip() == CONTENT_TYPE else None
    problem = b""
    async with Landing(result) as file:
        async for piece in answer.pieces():
            if frames is not None:
                frames.feed(piece)
            elif answer.status >= 300 and len(problem) < PROBLEM_MAX:
                problem += piece
            await file.write(piece)
        if frames is not None and not frames.complete:
            raise ValueError("its last frame is missing")
        raised = None if frames is None else frames.raised
        code, detail = _read_problem(problem)
        if raised is not None:
            code, detail = raised.code, f"{raised.type}: {raised.text}" if raised.type else raised.text
        outcome = Outcome(Came.ANSWERED, answer.status, kind, file.size_bytes, raised is not None, code, detail)
        if not is_refusal(outcome):
            await file.land()
    return outcome


def _read_problem(body: bytes) -> tuple[str, str]:
    """Its code and its sentence, where it is one."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.MsgspecError:
        return "", ""
    return problem.code, problem.detail


def _open(file: Path, size_bytes: int) -> tuple[bytes, int | None]:
    """The first piece, and where the others are read from; None: it is all of it. One hop to a thread for what is small."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        first = os.read(fd, PIECE_BYTES)
    except BaseException:
        os.close(fd)
        raise
    if len(first) < size_bytes:
        return first, fd
    os.close(fd)
    return first, None


async def _pieces(first: bytes, rest: int | None) -> AsyncIterator[bytes]:
    yield first
    while rest is not None and (piece := await asyncio.to_thread(os.read, rest, PIECE_BYTES)):
        yield piece
