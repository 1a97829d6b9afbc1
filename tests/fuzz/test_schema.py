"""1,000 requests that schemathesis draws from the schemas of the wire types, as they stand in the code: half
that fit them, half that do not.

The first are answered or refused by a rule beyond the schema (a whole number that is written 3.0, `n` above
`best_of`); the others are refused, every one. Nothing is a 5xx.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from gateway.protocol import ChatRequest, CompletionRequest
from tests.fuzz.drive import Answer, fault_of

TYPES = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}
CASES = 250
"""Of each path and mode."""


def document() -> dict[str, Any]:
    """OpenAPI's form of the two requests. The gateway serves no such document."""
    found, schemas = msgspec.json.schema_components(
        TYPES.values(), ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bonsai gateway", "version": "1"},
        "components": {"schemas": schemas},
        "paths": {path: {"post": _operation(schema)} for path, schema in zip(TYPES, found, strict=True)},
    }


def _operation(schema: dict[str, Any]) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"requestBody": body, "responses": {"200": {"description": "The answer"}}}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", TYPES)
def test_requests_drawn_from_the_schema(gateway: tuple[str, Path], path: str, mode: GenerationMode) -> None:
    url, log = gateway
    statuses: dict[int, int] = {}

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(schemathesis.openapi.from_dict(document())[path]["POST"].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        got = case.call(base_url=url)
        headers = {name.lower().encode(): values[0].encode() for name, values in got.headers.items()}
        answer = Answer(got.status_code, headers, got.content)
        assert fault_of(answer) is None
        if mode is GenerationMode.NEGATIVE:
            assert 400 <= got.status_code < 500
        statuses[got.status_code] = statuses.get(got.status_code, 0) + 1

    ask()
    print(path, mode.value, dict(sorted(statuses.items())))
    assert sum(statuses.values()) >= CASES
    assert "Traceback" not in log.read_text()
