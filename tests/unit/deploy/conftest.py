"""The base's resources as they stand in their files, and the parts of them that tests ask about."""

from pathlib import Path

import pytest
import yaml

from unit.deploy.manifests import Resource, by_kind

BASE = Path(__file__).parents[3] / "deploy" / "kustomize" / "base"


@pytest.fixture(scope="module")
def base() -> dict[str, Resource]:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return by_kind(yaml.safe_load((BASE / name).read_text()) for name in listed)


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
