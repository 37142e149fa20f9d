"""Who is calling? An ASGI layer around everything else, so that nothing behind it (routes, 404s, the OpenAPI document) is
visible without a token.

Anonymous: GET /healthz alone. HTTP: the admin's token; the agent's token may GET bundles and values of secrets; a running job's
token may submit, look at and stop jobs, and read what it builds an image from; it and a function's token may call functions of
their owner. WebSocket: the agent's token for the agent's paths and nothing else, the admin's for all others. Tokens are compared
in constant time and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from steelyard.api.problems import MEDIA_TYPE, make_problem
from steelyard.errors import Unauthorized
from steelyard.model.function import Function
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, JobId, MachineId
from steelyard.model.job import Job, Owner
from steelyard.store import Tx

AGENT_PATH = "/v1/agent"
#: where an agent brings its end of a stream that it was asked for
STREAM_PATH = "/v1/agent/streams"
HEALTH_PATH = "/healthz"
#: what an agent may ask for besides its WebSocket: the code that it is to run, and the secrets and images for it
AGENT_PATHS = ("/v1/bundles/", "/v1/secret-values/", "/v1/packed-images/")

#: what a job's own processes may call
JOB_PATHS = ("/v1/jobs", "/v1/scripts")
#: what those of a job that builds an image may read
_READ_PARTS = re.compile(r"/v1/(images|bundles)/[^/]+")
#: what those of jobs and functions may call
CALL_PATHS = ("/v1/calls", "/v1/call-key")
_MAKE_CALL = re.compile(r"/v1/functions/[^/]+/calls")
_READ_ENDS = re.compile(r"/v1/functions/[^/]+/ends")


class Caller(msgspec.Struct, frozen=True):
    """Whose process is calling: a job's, or a function's replica."""

    #: "job" or "function"
    kind: str
    name: str
    #: attempt, or revision
    number: int
    #: of a function: who owned it when the token was made
    user: str = ""

    def owner(self, tx: Tx) -> Owner:
        """Raises Unauthorized when it is gone."""
        row = tx.job(JobId(self.name)) if self.kind == "job" else tx.function(DEFAULT_PROJECT, FunctionName(self.name))
        # a function of that name may have been deleted, and another one made by somebody else
        if row is None or (isinstance(row, Function) and (row.revision < self.number or row.owner.user != self.user)):
            raise Unauthorized(f"The {self.kind} {self.name} is not here any more, so its token opens nothing.")
        return row.owner


class WorkloadTokens:
    """Tokens for the processes of running jobs (`job.<job>.<attempt>.<signature>`) and of functions
    (`function.<name>.<revision>.<user>.<signature>`), and keys by which their owners' processes call functions. Nothing is
    stored: signatures are made with the admin's token. A job's token is worth nothing once its attempt has ended, a function's
    once that is deleted."""

    def __init__(self, admin_token: str, attempt: Callable[[str], int | None]) -> None:
        """`attempt`: the number of a job's attempt that holds a place now."""
        self._secret = hashlib.sha256(b"steelyard job token\0" + admin_token.encode()).digest()
        self._attempt = attempt
        #: every assignment names the tokens of all that runs
        self._sign = lru_cache(maxsize=8192)(self._make_signature)

    def sign_job(self, job: Job) -> str:
        return self._sign(f"job.{job.id}.{job.attempt}")

    def sign_function(self, function: Function) -> str:
        return self._sign(f"function.{function.name}.{function.revision}.{function.owner.user}")

    def sign_pilot(self, pilot: MachineId) -> str:
        """By which the agent of that pilot is told from the work on its machine; who it is says its certificate."""
        return self._sign(f"pilot.{pilot}")

    def call_key(self, owner: Owner) -> str:
        """What the gateway lets that owner's processes in by."""
        return "sk-" + self._sign(f"key.{owner.user}").rpartition(".")[2]

    def check(self, token: bytes) -> Caller | None:
        """Whose token it is; a job's only while its attempt runs."""
        try:
            text = token.decode()
            said, _, _ = text.rpartition(".")
            kind, name, number, *more = said.split(".", 3)
            caller = Caller(kind, name, int(number), *more)
        except (ValueError, TypeError):
            return None
        if kind not in ("job", "function") or not hmac.compare_digest(self._sign(said).encode(), token):
            return None
        return caller if kind == "function" or self._attempt(name) == caller.number else None

    def _make_signature(self, text: str) -> str:
        return f"{text}.{hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()[:43]}"


def caller_of(request: Any) -> Caller | None:
    """The job or function whose process is calling; None: the admin."""
    return request.scope.get("steelyard.caller")


class Peer(msgspec.Struct, frozen=True):
    """As whom an agent of a pool was let in."""

    machine: MachineId
    pool: str


def peer_of(request: Any) -> Peer | None:
    """None: the home's own agent, which came with its token."""
    return request.scope.get("steelyard.peer")


def is_agent(request: Any) -> bool:
    return request.scope.get("steelyard.agent", False)


class TokenGate:
    """Passes on what shows the right token; answers 401 to the rest."""

    def __init__(self, app: Any, admin_token: str, agent_token: str, tokens: WorkloadTokens) -> None:
        self._app = app
        self._admin_token = admin_token.encode()
        self._agent_token = agent_token.encode()
        self._tokens = tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if scope["path"] == HEALTH_PATH or self._is_admin(scope):
                await self._app(scope, receive, send)
            elif self._agent_fetches(scope):
                await self._app({**scope, "steelyard.agent": True}, receive, send)
            elif (caller := self._workload_calls(scope)) is not None:
                await self._app({**scope, "steelyard.caller": caller}, receive, send)
            else:
                await _refuse(send)
        elif scope["type"] == "websocket":
            if self._is_agent(scope) if _below(scope["path"], (AGENT_PATH,)) else self._is_admin(scope):
                await self._app(scope, receive, send)
            else:
                # closing before accepting is answered by the HTTP layer as 403, with no body
                await receive()
                await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    def _is_admin(self, scope: Any) -> bool:
        return fits(scope, self._admin_token)

    def _is_agent(self, scope: Any) -> bool:
        return fits(scope, self._agent_token)

    def _agent_fetches(self, scope: Any) -> bool:
        return scope["method"] == "GET" and scope["path"].startswith(AGENT_PATHS) and self._is_agent(scope)

    def _workload_calls(self, scope: Any) -> Caller | None:
        path = scope["path"]
        one = {"POST": _MAKE_CALL, "GET": _READ_ENDS}.get(scope["method"])
        calls = _below(path, CALL_PATHS) or (one is not None and one.fullmatch(path) is not None)
        builds = scope["method"] == "GET" and _READ_PARTS.fullmatch(path) is not None
        if not calls and not builds and not _below(path, JOB_PATHS):
            return None
        caller = self._tokens.check(_shown(scope))
        return caller if caller is not None and (calls or caller.kind == "job") else None


def fits(scope: Any, token: bytes) -> bool:
    """Is that the bearer token of the request?"""
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
