"""The served API keeps the promises of its own OpenAPI document, whatever is sent: no 5xx, every status and body documented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from api_rig import ADMIN, FakeAgent, Server
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

#: examples per operation, of which there are a hundred
EXAMPLES = 6


HEADERS = {"Authorization": f"Bearer {ADMIN}"}

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_api_is_as_it_describes_itself(home: Path, mode: GenerationMode) -> None:
    """One server for all operations. `mode`: what the document allows, and what it forbids."""
    with Server(home) as server, FakeAgent(server):
        document = server.http.get("/v1/openapi.json").json()
        # the token is not for playing with (test_api.py tries every wrong one); without this it would be generated too
        del document["security"]
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=server.url)
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) >= 20
        for operation in operations:
            exercise(document, operation, mode)
        assert server.process is not None and server.process.poll() is None
        assert "Traceback" not in server.log.read_text()


def is_allowed(document: dict[str, Any], operation: schemathesis.APIOperation, case: schemathesis.Case) -> bool:
    """Is it the body alone that was to be wrong, and is it right?"""
    kinds = {kind for kind, made in case.meta.components.items() if made.mode is GenerationMode.NEGATIVE} if case.meta else set()
    if kinds != {ParameterLocation.BODY}:
        return False
    body = document["paths"][operation.path][operation.method]["requestBody"]["content"].get(case.media_type)
    if body is None:
        return False
    try:
        return jsonschema_rs.is_valid({**body["schema"], "components": document["components"]}, case.body)
    except ValueError:
        return False  # it is no JSON


def exercise(document: dict[str, Any], operation: schemathesis.APIOperation, mode: GenerationMode) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        if case.query and isinstance(case.query.get("wait_s"), int | float):
            # nothing is learnt from really waiting
            case.query["wait_s"] = min(case.query["wait_s"], 0)
        # now and then what is meant to be forbidden is not: a mutated body that the document allows all the same
        assume(mode is GenerationMode.POSITIVE or not is_allowed(document, operation, case))
        case.call_and_validate(headers=HEADERS, checks=CHECKS, timeout=20)

    try:
        check()
    except Unsatisfiable:
        # an operation without parameters can't be called in a forbidden way
        assert mode is GenerationMode.NEGATIVE
