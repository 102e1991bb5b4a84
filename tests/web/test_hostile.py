"""Requests made from the OpenAPI document that no friendly page would send: none is answered by a 5xx.

The suite sends some; HOSTILE_REQUESTS=1000 as many as that for all paths together.
"""

import os
from collections import Counter
from contextlib import suppress

import pytest
import requests
import schemathesis
from helpers_web import listening, open_plan, serving
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", "120"))


@pytest.fixture(scope="module")
def server(random_base, tmp_path_factory):
    opened = open_plan(random_base, "--max_new_tokens", "4")
    folder = tmp_path_factory.mktemp("web")
    with serving(opened, folder, most_jobs=1000) as (app, *_), listening(app) as address:
        yield address


def test_no_request_makes_the_server_fail(server):
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses, session = Counter(), requests.Session()
    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=max(2, REQUESTS // (2 * len(operations))),
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                database=None,
            )
            def send(case):
                answer = case.call(session=session, base_url=server, timeout=300)
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, (case.method, case.formatted_path, answer.text[:500])

            with suppress(Unsatisfiable):  # nothing is wrong with what takes nothing
                send()
    assert statuses[200] > 5
    assert statuses[422] > 5
    assert requests.get(f"{server}/api/health").json()["status"] == "ready"
