"""The documents say what is served: they are valid, they are whole, and what they promise is held against a real server
by schemathesis, which makes up requests, right and wrong ones, from the document alone."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openapi_spec_validator
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from control_plane.web.api import ROUTES
from control_plane.web.asyncapi import asyncapi_document
from control_plane.web.openapi import PATH_PARAMETERS, openapi_document
from control_plane.web.routes import Route
from tests.support.control_plane_process import ControlPlaneProcess
from wire.frames import FROM_SERVER, FROM_WORKER, frame_type

DOCUMENT = json.loads(json.dumps(openapi_document(ROUTES)))
SPEC = {
    "steps": [{"key": "one", "kind": "action", "config": {"action_name": "print", "parameters": {"message": "x"}}}],
}
EXAMPLES = 1000 if os.environ.get("MOBIUS_TEST_LONG") else 12
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def resolved(reference: str, document: dict[str, Any]) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/")]
    return found


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_the_document_is_valid_openapi_3_1() -> None:
    openapi_spec_validator.validate(DOCUMENT)


def test_every_route_is_described() -> None:
    described = {
        (method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"
    }
    assert described == {(route.method, route.path) for route in ROUTES}
    for item in DOCUMENT["paths"].values():
        for method, operation in item.items():
            if method != "parameters":
                assert operation["summary"], operation


def test_every_path_parameter_has_its_words() -> None:
    used = {part[1:-1] for route in ROUTES for part in route.path.split("/") if part.startswith("{")}
    assert set(PATH_PARAMETERS) == used


def test_only_routes_without_a_key_need_none() -> None:
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.path][route.method.lower()]
        assert (operation.get("security") == []) is not route.key_needed


def test_patterns_are_those_of_json_schema() -> None:
    assert "\\Z" not in json.dumps(DOCUMENT)
    assert DOCUMENT["components"]["schemas"]["CreateAutomationRequest"]["properties"]["handle"]["pattern"].endswith("$")


def test_the_worker_sockets_document_has_every_frame_and_no_loose_end() -> None:
    document = asyncapi_document()
    for reference in references(document):
        resolved(reference, document)
    for operation, shapes in (("toServer", FROM_WORKER), ("toWorker", FROM_SERVER)):
        messages = [resolved(each["$ref"], document) for each in document["operations"][operation]["messages"]]
        names = [resolved(message["$ref"], document)["name"] for message in messages]
        assert names == [frame_type(shape) for shape in shapes]
        for name, shape in zip(names, shapes, strict=True):
            payload = resolved(document["components"]["messages"][name]["payload"]["$ref"], document)
            assert payload["properties"]["type"] == {"enum": [name]}
            assert set(payload["properties"]) == {"type", *shape.__struct_fields__}


# --- against a server


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture(scope="module")
def known(plane: ControlPlaneProcess) -> dict[str, list[str]]:
    """What path parameters may be to mean something: by the path's word before them."""
    with plane.http() as http:

        def post(path: str, body: Any) -> Any:
            return http.post(f"/v1/projects/default{path}", json=body).raise_for_status().json()

        post("/automations", {"handle": "sample", "name": "Sample"})
        post("/automations/sample/versions", {"spec": SPEC})
        http.post("/v1/projects/default/automations/sample/versions/1/publication").raise_for_status()
        run = post("/automations/sample/runs", {})["id"]
        # It ends, so that every stream of it ends.
        post(f"/runs/{run}/cancellations", {})
        steps = http.get(f"/v1/projects/default/runs/{run}/steps").raise_for_status().json()["items"]
    jobs = [step["job_id"] for step in steps]
    return {"jobs": jobs, "projects": ["default"], "automations": ["sample"], "versions": ["1"], "runs": [run]}


def impatient(case: Any) -> None:
    """Nobody does the work that is asked for: one second of waiting for it is enough."""
    assume(isinstance(case.body, dict | list | str | int | float | None))
    if isinstance(case.body, dict) and isinstance(case.body.get("timeout_seconds", 1), int):
        case.body["timeout_seconds"] = min(1, case.body.get("timeout_seconds", 1))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_what_is_answered_is_what_the_document_says(
    plane: ControlPlaneProcess, known: dict[str, list[str]], route: Route, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    operation = schema[route.path][route.method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or "{" in route.path):
        return  # nothing in such a request can be wrong
    segments = route.path.strip("/").split("/")
    named = {
        segment[1:-1]: known.get(before, ["unknown"])
        for before, segment in itertools.pairwise(segments)
        if segment.startswith("{")
    }

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        path_parameters = {
            name: data.draw(st.sampled_from(values)) for name, values in named.items() if data.draw(st.integers(0, 4))
        }
        case = data.draw(operation.as_strategy(mode, path_parameters=path_parameters or None))
        if route.may_go_on:
            impatient(case)
        case.call_and_validate(
            base_url=plane.url, headers={"authorization": f"Bearer {plane.key}"}, checks=CHECKS, timeout=20.0
        )

    run()


def test_the_reference_is_served_without_a_key_and_from_here_alone(plane: ControlPlaneProcess) -> None:
    with httpx.Client(base_url=plane.url) as http:
        assert http.get("/openapi.json").raise_for_status().json() == DOCUMENT
        assert http.get("/asyncapi.json").raise_for_status().json() == json.loads(json.dumps(asyncapi_document()))
        page = http.get("/reference").raise_for_status()
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for asset, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
            assert f"/reference/{asset}" in page.text
            served = http.get(f"/reference/{asset}").raise_for_status()
            assert served.headers["content-type"].startswith(kind)
        for path in ("/reference", "/reference/page.css", "/reference/page.js"):
            assert "://" not in http.get(path).text
        assert http.get("/reference/../api.py").status_code == 404


def test_the_pages_assets_are_in_the_package() -> None:
    page = Path("control_plane/web/reference_page")
    assert {path.name for path in page.iterdir()} == {"index.html", "page.css", "page.js"}
