"""Who is calling? An ASGI layer around everything else, so that nothing behind it (routes, 404s, the OpenAPI document) is
visible without a token.

Anonymous: GET /healthz alone. HTTP: the admin's token; the agent's token may GET bundles; a running job's token may submit, look
at and stop jobs. WebSocket: the agent's token, for nothing but the agent's path. Tokens are compared in constant time and never
logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from steelyard.api.problems import MEDIA_TYPE, make_problem

AGENT_PATH = "/v1/agent"
HEALTH_PATH = "/healthz"
#: the one thing besides its WebSocket that an agent may ask for: the code it is to run
CODE_PATH = "/v1/bundles/"


#: what a job's own processes may call
JOB_PATHS = ("/v1/jobs", "/v1/scripts")
_JOB_TOKEN = b"job."


class JobTokens:
    """Tokens for the processes of running jobs: `job.<job>.<attempt>.<signature>`. Nothing is stored: the signature is made with
    the admin's token, and a token is worth nothing once its attempt has ended."""

    def __init__(self, admin_token: str, attempt: Callable[[str], int | None]) -> None:
        """`attempt`: the number of a job's attempt that holds a place now."""
        self._secret = hashlib.sha256(b"steelyard job token\0" + admin_token.encode()).digest()
        self._attempt = attempt
        #: every assignment names the tokens of all that runs
        self.sign = lru_cache(maxsize=4096)(self._sign)

    def _sign(self, job: str, attempt: int) -> str:
        text = f"job.{job}.{attempt}"
        return f"{text}.{hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()[:43]}"

    def check(self, token: bytes) -> str | None:
        """Whose token it is, if its attempt still runs."""
        try:
            _, job, number, _ = token.decode().split(".")
            attempt = int(number)
        except ValueError:
            return None
        if not hmac.compare_digest(self.sign(job, attempt).encode(), token) or self._attempt(job) != attempt:
            return None
        return job


def caller_of(request: Any) -> str | None:
    """The job whose process is calling; None: the admin."""
    return request.scope.get("steelyard.job")


class TokenGate:
    """Passes on what shows the right token; answers 401 to the rest."""

    def __init__(self, app: Any, admin_token: str, agent_token: str, jobs: JobTokens) -> None:
        self._app = app
        self._admin_token = admin_token.encode()
        self._agent_token = agent_token.encode()
        self._jobs = jobs

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if scope["path"] == HEALTH_PATH or self._fits(scope, self._admin_token) or self._agent_fetches_code(scope):
                await self._app(scope, receive, send)
            elif (job := self._job_calls(scope)) is not None:
                await self._app({**scope, "steelyard.job": job}, receive, send)
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

    def _job_calls(self, scope: Any) -> str | None:
        shown = _shown(scope)
        if not shown.startswith(_JOB_TOKEN) or not _below(scope["path"], JOB_PATHS):
            return None
        return self._jobs.check(shown)

    @staticmethod
    def _fits(scope: Any, token: bytes) -> bool:
        return hmac.compare_digest(_shown(scope), token)


def _shown(scope: Any) -> bytes:
    """The bearer token of a request; b"" where there is none, or more than one."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, shown = (given[0] if len(given) == 1 else b"").partition(b" ")
    return shown.strip() if scheme.lower() == b"bearer" else b""


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


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
