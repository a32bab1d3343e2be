"""The description of the API, and the page that shows it."""

import base64
import hashlib
import json
import re

from service.__main__ import OPENAPI_FILE, openapi_text


def operations(document):
    for path, by_method in document["paths"].items():
        for operation in by_method.values():
            yield path, operation


def test_the_checked_in_description_is_the_one_that_is_served(service):
    assert OPENAPI_FILE.read_text(encoding="utf-8") == openapi_text(), "run `python -m service openapi`"
    assert json.loads(service.get("/v1/openapi.json").body) == json.loads(openapi_text())


def test_every_operation_has_an_id_of_its_own():
    ids = [operation["operationId"] for _, operation in operations(json.loads(openapi_text()))]
    assert len(ids) == len(set(ids)) > 0
    assert {"generate", "info", "livez", "metrics", "readyz", "publish_lora", "resolve_lora"} <= set(ids)


def test_it_is_openapi_3_1_and_every_error_is_a_problem():
    document = json.loads(openapi_text())
    assert document["openapi"].startswith("3.1")
    for path, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status[0] != "2":
                assert list(answer["content"]) == ["application/problem+json"], (path, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_reference_leads_somewhere():
    text = openapi_text()
    document = json.loads(text)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in document["components"]["schemas"]


def test_the_docs_page_asks_nobody_else_and_may_run_its_one_script(service):
    reply = service.get("/docs")
    page = reply.body.decode()
    assert "://" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in reply.headers["content-security-policy"]
