"""Is a request's form right before its content is looked at? Content type, names of parameters; findings become a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from steelyard.api.door import Finding
from steelyard.errors import Refused


async def require_json(request: Request[Any, Any, Any]) -> None:
    """Bodies are JSON and say so: a browser's form can't be taken for one."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused("The body must be JSON: send it with Content-Type: application/json.", code="unsupported-media-type")


async def refuse_unknown_query(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """A misspelt parameter is named instead of silently ignored, as fields of bodies are. Never waits, but a plain function would
    be called in a thread."""
    if not connection.scope["query_string"]:
        return
    not_query = {"request", "data", "idempotency_key", *connection.path_params}
    # a name that the framework keeps for itself goes by another one inside
    known = {
        getattr(field.kwarg_definition, "query", None) or name
        for name, field in handler.parsed_fn_signature.parameters.items()
        if name not in not_query
    }
    unknown = sorted(set(connection.query_params) - known)
    if unknown:
        raise Refused(f"There is no parameter {unknown[0][:80]!r} here.", code="unknown-parameter")


def refuse_findings(findings: Sequence[Finding]) -> None:
    """Raise for the first finding's code, with every finding's text."""
    if findings:
        texts = list(dict.fromkeys(finding.text for finding in findings))
        raise Refused("; ".join(texts), code=findings[0].code)
