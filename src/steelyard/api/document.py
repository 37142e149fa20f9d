"""What does the API look like to a program? The OpenAPI 3.1 document, rendered from the routes when somebody first asks for it.

Served by a route of our own: litestar's routes for it answer unknown paths beside it with an HTML page, and building the document
at the start would cost every server memory that few need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ControllerRouterHandler

from steelyard import __version__


@get("/v1/openapi.json", include_in_schema=False)
async def get_document(request: Request[Any, Any, Any]) -> Response[bytes]:
    state = request.app.state
    if "document" not in state:
        state["document"] = render_document(cast("Sequence[ControllerRouterHandler]", state["described"]))
    return Response(cast("bytes", state["document"]), media_type="application/json")


def render_document(routes: Sequence[ControllerRouterHandler]) -> bytes:
    config = OpenAPIConfig(
        title="Steelyard",
        version=__version__,
        description="Jobs and functions on bare-metal servers. Errors are application/problem+json with a stable `code`.",
        components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"token": []}],
        use_handler_docstrings=True,
    )
    described = Litestar(route_handlers=routes, openapi_config=config, logging_config=None)
    schema = described.openapi_schema.to_schema()
    for operations in schema["paths"].values():
        for operation in operations.values():
            # the framework describes a body of `null` there
            operation["responses"].get("204", {}).pop("content", None)
    return msgspec.json.encode(schema)
