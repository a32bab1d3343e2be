"""The base's resources as they stand in their files, and the parts of them that tests ask about."""

from pathlib import Path
from typing import Any

import pytest
import yaml

BASE = Path(__file__).parents[3] / "deploy" / "kustomize" / "base"

Resource = Any
"""A document, or a part of one, as YAML gives it."""


@pytest.fixture(scope="module")
def base() -> dict[str, Resource]:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return {r["kind"]: r for r in (yaml.safe_load((BASE / name).read_text()) for name in listed)}


@pytest.fixture(scope="module")
def deployment(base: dict[str, Resource]) -> Resource:
    return base["Deployment"]["spec"]


@pytest.fixture(scope="module")
def pod(deployment: Resource) -> Resource:
    return deployment["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Resource) -> Resource:
    (only,) = pod["containers"]
    return only


@pytest.fixture(scope="module")
def env(container: Resource) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}
