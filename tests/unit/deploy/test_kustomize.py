"""The manifests are valid for every Kubernetes from 1.30 on, and render with what an overlay changes."""

import copy
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions
from packaging.version import Version

from unit.deploy.manifests import Resource, by_kind

DEPLOY = Path(__file__).parents[3] / "deploy"
BASE = DEPLOY / "kustomize" / "base"
EXAMPLE = DEPLOY / "kustomize" / "overlays" / "example"
README = (DEPLOY / "README.md").read_text()
KUBERNETES_VERSIONS = sorted({v for v in all_versions() if Version(v) >= Version("1.30")}, key=Version)


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """The schema of an object that has no other fields than these."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
# The part of monitoring.coreos.com/v1 that we use: the custom resource is in no Kubernetes schema.
SERVICE_MONITOR = closed(
    {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": closed(
            {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": STRINGS}, "name"
        ),
        "spec": closed(
            {
                "jobLabel": {"type": "string"},
                "selector": closed({"matchLabels": STRINGS}, "matchLabels"),
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": closed(
                        {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": DURATION,
                            "scrapeTimeout": DURATION,
                        },
                        "port",
                    ),
                },
            },
            "selector",
            "endpoints",
        ),
    },
    "apiVersion",
    "kind",
    "metadata",
    "spec",
)


def validate(resource: Resource, version: str) -> None:
    if resource["kind"] == "ServiceMonitor":
        jsonschema.validate(resource, SERVICE_MONITOR)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


def kustomize() -> list[str] | None:
    """The command that renders a folder, where one is installed that knows kustomize 5."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        answer = subprocess.run(
            ["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True
        )
        version = json.loads(answer.stdout or "{}").get("kustomizeVersion", "v0")
        return ["kubectl", "kustomize"] if Version(version) >= Version("5") else None
    return None


def render(folder: Path) -> list[Resource]:
    command = kustomize()
    if command is None:
        pytest.skip("neither kustomize nor a kubectl with kustomize 5 is installed")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The example with what the README adds for replicas that share a registry."""
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
    overlay = tmp_path / "kustomize" / "overlays" / "example"
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    added = yaml.safe_load(next(block for block in blocks if "components:" in block))
    whole = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    whole["secretGenerator"] += added.pop("secretGenerator")
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(whole | added))
    (overlay / "registry.env").write_text("DARKROOM_DATABASE=postgresql://db/darkroom\n")
    return overlay


class TestValidity:
    def test_schemas_reach_from_1_30_to_something_newer(self) -> None:
        assert KUBERNETES_VERSIONS[0].startswith("1.30")
        assert len(KUBERNETES_VERSIONS) >= 5

    def test_every_file_of_the_base_is_listed(self) -> None:
        listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
        assert sorted(listed) == sorted(p.name for p in BASE.iterdir() if p.name != "kustomization.yaml")

    @pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
    def test_base_is_valid_in_strict_mode(self, base: dict[str, Resource], version: str) -> None:
        for resource in base.values():
            validate(resource, version)

    @pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
    def test_replicas_that_share_a_registry_are_valid_in_strict_mode(
        self, shared: Path, version: str
    ) -> None:
        for resource in render(shared):
            validate(resource, version)

    @pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
    def test_rendered_example_is_valid_in_strict_mode(self, version: str) -> None:
        for resource in render(EXAMPLE):
            validate(resource, version)

    def test_misspelt_field_is_refused(self, base: dict[str, Resource]) -> None:
        broken = copy.deepcopy(base["Deployment"])
        broken["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
        with pytest.raises(jsonschema.ValidationError):
            validate(broken, KUBERNETES_VERSIONS[0])

    def test_misspelt_field_of_the_service_monitor_is_refused(self, base: dict[str, Resource]) -> None:
        broken = copy.deepcopy(base["ServiceMonitor"])
        broken["spec"]["endpoints"][0]["intervall"] = "30s"
        with pytest.raises(jsonschema.ValidationError):
            validate(broken, KUBERNETES_VERSIONS[0])


class TestRendering:
    def test_base_renders_to_its_files(self, base: dict[str, Resource]) -> None:
        assert by_kind(render(BASE)) == base

    def test_example_puts_everything_into_its_namespace(self) -> None:
        rendered = by_kind(render(EXAMPLE))
        namespace = rendered.pop("Namespace")
        assert {r["metadata"]["namespace"] for r in rendered.values()} == {namespace["metadata"]["name"]}

    def test_example_sets_the_image(self) -> None:
        pod = by_kind(render(EXAMPLE))["Deployment"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["image"] == "registry.example.com/darkroom:0.1.0"

    def test_changed_keys_roll_out(self, tmp_path: Path) -> None:
        shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
        overlay = tmp_path / "kustomize" / "overlays" / "example"
        before = by_kind(render(overlay))
        keys = json.loads((overlay / "api-keys.json").read_text())
        keys[0]["sha256"] = hashlib.sha256(b"another").hexdigest()
        (overlay / "api-keys.json").write_text(json.dumps(keys))
        after = by_kind(render(overlay))

        assert before["Deployment"]["spec"]["template"] != after["Deployment"]["spec"]["template"]
        volumes = after["Deployment"]["spec"]["template"]["spec"]["volumes"]
        assert after["Secret"]["metadata"]["name"] in [v.get("secret", {}).get("secretName") for v in volumes]

    def test_patch_in_the_readme_takes_the_service_monitor_out(self, tmp_path: Path) -> None:
        shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
        overlay = tmp_path / "kustomize" / "overlays" / "example"
        patch = next(
            block
            for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
            if "ServiceMonitor" in block
        )
        with (overlay / "kustomization.yaml").open("a") as file:
            file.write(patch)
        assert by_kind(render(EXAMPLE)).keys() - by_kind(render(overlay)).keys() == {"ServiceMonitor"}

    def test_replicas_that_share_a_registry_keep_only_copies_of_their_own(self, shared: Path) -> None:
        rendered = by_kind(resource for resource in render(shared) if resource["kind"] != "Secret")
        deployment = rendered["Deployment"]["spec"]
        assert deployment["replicas"] > 1
        assert "darkroom-data" not in rendered
        volumes = {volume.pop("name"): volume for volume in deployment["template"]["spec"]["volumes"]}
        assert volumes["data"].keys() == {"emptyDir"}

    def test_replicas_that_share_a_registry_do_not_start_without_it(self, shared: Path) -> None:
        rendered = render(shared)
        (pod,) = (r["spec"]["template"]["spec"] for r in rendered if r["kind"] == "Deployment")
        (source,) = pod["containers"][0]["envFrom"]
        assert source["secretRef"]["optional"] is False
        secrets = {r["metadata"]["name"] for r in rendered if r["kind"] == "Secret"}
        assert source["secretRef"]["name"] in secrets - {"darkroom-registry"}, "a change would not roll out"

    def test_the_training_component_starts_jobs_where_the_base_has_them_wait(self, tmp_path: Path) -> None:
        shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
        overlay = tmp_path / "kustomize" / "overlays" / "example"
        blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
        with (overlay / "kustomization.yaml").open("a") as file:
            file.write(next(block for block in blocks if "components/training" in block))
        found = []
        for folder in (EXAMPLE, overlay):
            (pod,) = (r["spec"]["template"]["spec"] for r in render(folder) if r["kind"] == "Deployment")
            found.append({entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]})
        base, training = found
        assert base["DARKROOM_TRAINING"] == "off"
        assert training == base | {"DARKROOM_TRAINING": "local", "DARKROOM_GPU_SHARING": "share"}
