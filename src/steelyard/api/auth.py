"""Who is calling? An ASGI layer around everything else, so that nothing behind it (routes, 404s, the OpenAPI document) is
visible without a token.

Anonymous: GET /healthz alone. HTTP: the admin's token; the agent's token may GET bundles. WebSocket: the agent's token, for
nothing but the agent's path. Tokens are compared in constant time and never logged.
"""

from __future__ import annotations

import hmac
from typing import Any

from steelyard.api.problems import MEDIA_TYPE, make_problem

AGENT_PATH = "/v1/agent"
HEALTH_PATH = "/healthz"
#: the one thing besides its WebSocket that an agent may ask for: the code it is to run
CODE_PATH = "/v1/bundles/"


class TokenGate:
    """Passes on what shows the right token; answers 401 to the rest."""

    def __init__(self, app: Any, admin_token: str, agent_token: str) -> None:
        self._app = app
        self._admin_token = admin_token.encode()
        self._agent_token = agent_token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if scope["path"] == HEALTH_PATH or self._fits(scope, self._admin_token) or self._agent_fetches_code(scope):
                await self._app(scope, receive, send)
            else:
                await _refuse(send)
        elif scope["type"] == "websocket":
            if scope["path"] == AGENT_PATH and self._fits(scope, self._agent_token):
                await self._app(scope, receive, send)
            else:
                # closing before accepting is answered by the HTTP layer as 403, with no body
                await receive()
                await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    def _agent_fetches_code(self, scope: Any) -> bool:
        reads = scope["method"] == "GET" and scope["path"].startswith(CODE_PATH)
        return reads and self._fits(scope, self._agent_token)

    @staticmethod
    def _fits(scope: Any, token: bytes) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, shown = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), token)


async def _refuse(send: Any) -> None:
    body = make_problem(401, "unauthorized", "This needs a token: Authorization: Bearer <content of admin.token in the home>.")
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
        # what the body of a refused request holds is not read
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
