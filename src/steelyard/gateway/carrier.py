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

import httpx2
import msgspec

from steelyard.lifecycle.call import Came, Outcome, is_refusal
from steelyard.model.call import Call
from steelyard.wire.api import Problem
from steelyard.wire.call_frames import CALL_PATH, CONTENT_TYPE, AnswerFrames
from steelyard.wire.landing import Landing

CONNECT_TIMEOUT_S = 5.0
PIECE_BYTES = 1 << 18
#: of a problem document, which is read
PROBLEM_MAX = 1 << 16


class GatewayCarrier:
    """Implements `control.calls.Carrier`. Connections are kept and used again."""

    def __init__(self, gateway_url: str) -> None:
        self._http = httpx2.AsyncClient(
            base_url=gateway_url,
            # a quiet function is a legitimate one: only the connection has a deadline
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def carry(self, call: Call, key: str, input: Path, result: Path) -> Outcome:
        path = f"/{quote(call.function)}{CALL_PATH}" + (f"/{quote(call.method)}" if call.method else "")
        headers = {
            "Authorization": f"Bearer {key}",
            "Content-Length": str(call.input_bytes),
            # the same for every attempt, so that a function can tell a repetition
            "Idempotency-Key": call.id,
        }
        if call.content_type:
            headers["Content-Type"] = call.content_type
        head_came = False
        try:
            async with self._http.stream("POST", path, headers=headers, content=_pieces(input)) as answer:
                head_came = True
                return await _keep(answer, result)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as err:
            return Outcome(Came.UNSENT, detail=str(err))
        except (httpx2.HTTPError, httpx2.StreamError) as err:
            if not head_came:
                return Outcome(Came.CUT, detail=repr(err))
            # the gateway lives, or so it seems: the function went away in the middle of its answer
            return Outcome(Came.ANSWERED, 502, detail="the replica went away in the middle of its answer")
        except ValueError as err:
            return Outcome(Came.ANSWERED, 502, detail=f"its answer can't be read: {err}")
        except FileNotFoundError as err:
            return Outcome(Came.LOST_INPUT, detail=str(err))
        except OSError as err:
            full = err.errno in (errno.ENOSPC, errno.EDQUOT)
            return Outcome(Came.UNKEPT, detail="the disk is full" if full else os.strerror(err.errno or 0))


async def _keep(answer: httpx2.Response, result: Path) -> Outcome:
    kind = answer.headers.get("content-type", "")
    frames = AnswerFrames() if kind.partition(";")[0].strip() == CONTENT_TYPE else None
    problem = b""
    async with Landing(result) as file:
        async for piece in answer.aiter_raw():
            if frames is not None:
                frames.feed(piece)
            elif answer.status_code >= 300 and len(problem) < PROBLEM_MAX:
                problem += piece
            await file.write(piece)
        if frames is not None and not frames.complete:
            raise ValueError("its last frame is missing")
        raised = None if frames is None else frames.raised
        code, detail = _read_problem(problem)
        if raised is not None:
            code, detail = raised.code, f"{raised.type}: {raised.text}" if raised.type else raised.text
        outcome = Outcome(Came.ANSWERED, answer.status_code, kind, file.size_bytes, raised is not None, code, detail)
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


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    fd = await asyncio.to_thread(os.open, file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := await asyncio.to_thread(os.read, fd, PIECE_BYTES):
            yield piece
    finally:
        os.close(fd)
