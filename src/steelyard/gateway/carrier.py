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
            # one without input has no file
            body = await asyncio.to_thread(os.open, input if call.input_bytes else os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            return Outcome(Came.LOST_INPUT, detail=str(err))
        try:
            return await self._ask(call, key, body, result)
        except NoConnection as err:
            return Outcome(Came.UNSENT, detail=str(err))
        except Cut as err:
            return Outcome(Came.CUT, detail=str(err))
        except OSError as err:
            full = err.errno in (errno.ENOSPC, errno.EDQUOT)
            return Outcome(Came.UNKEPT, detail="the disk is full" if full else os.strerror(err.errno or 0))
        finally:
            os.close(body)

    async def _ask(self, call: Call, key: str, body: int, result: Path) -> Outcome:
        path = f"/{quote(call.function)}{CALL_PATH}" + (f"/{quote(call.method)}" if call.method else "")
        headers = {
            "Authorization": f"Bearer {key}",
            "Content-Length": str(call.input_bytes),
            # the same for every attempt, so that a function can tell a repetition
            "Idempotency-Key": call.id,
        }
        if call.content_type:
            headers["Content-Type"] = call.content_type
        async with self._gateway.post(path, headers, _pieces(body)) as answer:
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


async def _pieces(file: int) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(os.read, file, PIECE_BYTES):
        yield piece
