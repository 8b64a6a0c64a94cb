"""What the OpenAPI document says is what the server does, whatever it is sent."""

import asyncio
import os

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.openapi.checks import UndefinedStatusCode

from attune.access import RULES
from attune.inference.http.openapi import openapi
from tests.inference.house import House

EXAMPLES = int(os.environ.get("ATTUNE_TEST_EXAMPLES", "200"))
SETTINGS = hypothesis.settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


def test_every_route_is_in_the_document_and_every_path_has_a_rule() -> None:
    documented = {f"{method.upper()} {path}" for path, methods in openapi()["paths"].items() for method in methods}
    routes = {rule for rule in RULES if rule.startswith(("GET ", "POST "))}
    assert routes - documented == {"GET /openapi.json"}
    assert documented <= routes


async def test_no_example_brings_a_5xx_or_an_undocumented_status(house: House) -> None:
    seen = await asyncio.to_thread(_try_all, house)
    assert sum(seen.values()) >= EXAMPLES // 2
    assert {200, 400} <= set(seen)
    assert not {status for status in seen if status >= 500}
    await house.stub.Chat(_hello(), timeout=60)


def _try_all(house: House) -> dict[int, int]:
    url = f"http://127.0.0.1:{house.http_port}"
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    headers = {"authorization": f"Bearer {house.api_key}"}
    operations = [result.ok() for result in schema.get_all_operations()]
    seen: dict[int, int] = {}
    with requests.Session() as session:
        for operation in operations:

            @hypothesis.settings(SETTINGS, max_examples=max(1, EXAMPLES // len(operations)))
            @hypothesis.given(case=operation.as_strategy())
            def attempt(case: schemathesis.Case) -> None:
                response = case.call(base_url=url, headers=headers, session=session, timeout=60)
                seen[response.status_code] = seen.get(response.status_code, 0) + 1
                case.validate_response(response, checks=[not_a_server_error])
                documented = case.operation.definition.raw["responses"]
                if str(response.status_code) not in documented:
                    raise UndefinedStatusCode(
                        operation=case.operation.label,
                        status_code=response.status_code,
                        defined_status_codes=list(documented),
                        allowed_status_codes=[],
                        message=response.text[:200],
                    )

            attempt()
    return seen


def _hello() -> object:
    from tests.inference.house import ask

    return ask(max_tokens=2)
