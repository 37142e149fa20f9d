"""Who answers when a function can't start? The agent itself: it accepts what waits on the function's socket and answers 503.

problem+json with `Retry-After`; reads at most one request head per connection, then closes. Stops at an empty backlog.
"""

from __future__ import annotations

import asyncio
import json
import socket

from steelyard.model.reason import Reason

#: how long one client may take to send its request head before we answer anyway
HEAD_TIMEOUT_S = 2.0
HEAD_MAX = 65_536


def render_refusal(reason: Reason, detail: str, retry_after_s: int) -> bytes:
    """A whole HTTP/1.1 503 response."""
    body = json.dumps(
        {
            "type": f"urn:steelyard:problem:{reason}",
            "title": "The function could not be started",
            "status": 503,
            "detail": detail,
            "code": str(reason),
        }
    ).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n"
        f"retry-after: {max(1, retry_after_s)}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


async def refuse_waiting(listener: socket.socket, response: bytes) -> int:
    """Answer every connection in the backlog; returns how many there were."""
    count = 0
    tasks: list[asyncio.Task[None]] = []
    while True:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            break
        except OSError:
            break
        connection.setblocking(False)
        tasks.append(asyncio.ensure_future(_answer(connection, response)))
        count += 1
    if tasks:
        await asyncio.gather(*tasks)
    return count


async def _answer(connection: socket.socket, response: bytes) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = b""
            while b"\r\n\r\n" not in head and len(head) < HEAD_MAX:
                part = await loop.sock_recv(connection, HEAD_MAX)
                if not part:
                    return
                head += part
    except (OSError, TimeoutError):
        pass
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            await loop.sock_sendall(connection, response)
    except (OSError, TimeoutError):
        pass
    finally:
        connection.close()
