"""What the manifests mean: probes, stopping, confinement, resources, settings and traffic."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.settings import ApiKey, Settings

DEPLOY = Path(__file__).parents[3] / "deploy"
EXAMPLE = DEPLOY / "kustomize" / "overlays" / "example"
README = (DEPLOY / "README.md").read_text()

Resource = Any


def seconds_of(probe: Resource) -> int:
    return int(probe["periodSeconds"] * probe["failureThreshold"])


def argument(container: Resource, name: str) -> str:
    return str(next(text.partition("=")[2] for text in container["args"] if text.startswith(f"{name}=")))


class TestProbes:
    def test_startup_and_readiness_ask_for_a_picture_and_liveness_for_life(self, container: Resource) -> None:
        paths = {k: v["httpGet"]["path"] for k, v in container.items() if k.endswith("Probe")}
        assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}

    def test_readiness_is_quick_liveness_patient_and_startup_longest(self, container: Resource) -> None:
        ready, alive, started = (
            seconds_of(container[f"{name}Probe"]) for name in ("readiness", "liveness", "startup")
        )
        assert ready <= 15 < 60 <= alive < started

    def test_startup_budget_covers_the_documented_first_start(self, container: Resource) -> None:
        (documented,) = re.findall(r"up to (\d+) minutes", README)
        (promised,) = re.findall(r"The pod has (\d+)", README)
        assert seconds_of(container["startupProbe"]) == int(promised) * 60 > int(documented) * 60

    def test_rollout_is_not_called_failed_while_a_pod_may_still_start(
        self, deployment: Resource, container: Resource
    ) -> None:
        assert deployment["progressDeadlineSeconds"] > seconds_of(container["startupProbe"])


class TestStopping:
    def test_every_part_of_a_stop_fits_into_the_next(
        self, pod: Resource, container: Resource, env: dict[str, str]
    ) -> None:
        pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        graceful = int(argument(container, "--timeout-graceful-shutdown"))
        drain = float(env["DARKROOM_DRAIN_SECONDS"])
        assert pod["terminationGracePeriodSeconds"] >= pre_stop + drain + graceful + 10

    def test_endpoints_forget_the_pod_before_it_stops_serving(self, container: Resource) -> None:
        assert container["lifecycle"]["preStop"]["sleep"]["seconds"] >= 5

    def test_rollout_needs_no_second_gpu(self, deployment: Resource) -> None:
        assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


class TestConfinement:
    """The rules of the *restricted* Pod Security Standard, and what goes beyond them."""

    def test_pod_is_bentomls_user_and_not_root(self, pod: Resource) -> None:
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 1034
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}

    def test_container_has_a_read_only_root_and_no_capabilities(self, container: Resource) -> None:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }

    def test_volumes_are_of_restricted_kinds(self, pod: Resource) -> None:
        kinds = {key for volume in pod["volumes"] for key in volume if key != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}

    def test_pod_has_no_token_of_the_cluster(self, base: dict[str, Resource], pod: Resource) -> None:
        assert pod["automountServiceAccountToken"] is False
        assert base["ServiceAccount"]["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == base["ServiceAccount"]["metadata"]["name"]

    def test_what_is_written_has_a_writable_volume(
        self, pod: Resource, container: Resource, env: Resource
    ) -> None:
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
        assert all(
            Path("/tmp") in (Path(env[name]), *Path(env[name]).parents) for name in ("HOME", "BENTOML_HOME")
        )
        assert "persistentVolumeClaim" in volumes[mounts[env["HF_HOME"]]["name"]]
        for folder in (env["HF_HOME"], env["DARKROOM_DATA"]):
            assert "persistentVolumeClaim" in volumes[mounts[folder]["name"]]
            assert not mounts[folder].get("readOnly", False)

    def test_volumes_are_the_claims_of_the_base(self, base: dict[str, Resource], pod: Resource) -> None:
        claims = {
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        }
        assert claims == {
            r["metadata"]["name"] for r in base.values() if r["kind"] == "PersistentVolumeClaim"
        }


class TestResources:
    def test_pod_asks_for_one_whole_gpu(self, container: Resource) -> None:
        resources = container["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"

    def test_memory_is_requested_in_full(self, container: Resource) -> None:
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]

    def test_memory_and_disk_hold_the_loras_beside_everything_else(
        self, base: dict[str, Resource], container: Resource, env: dict[str, str]
    ) -> None:
        settings = Settings(_env_file=None)
        memory, disk = (
            int(text.removesuffix("Gi")) << 30
            for text in (
                container["resources"]["requests"]["memory"],
                base["darkroom-data"]["spec"]["resources"]["requests"]["storage"],
            )
        )
        weights_bytes, rest_bytes = 12_000_000_000, 8 << 30
        assert int(env["DARKROOM_LORA_HOST_BYTES"]) == settings.lora_host_bytes
        assert memory >= weights_bytes + rest_bytes + int(env["DARKROOM_LORA_HOST_BYTES"])
        assert disk >= 2 * int(env["DARKROOM_LORA_DISK_BYTES"])

    def test_cpu_is_requested_and_never_throttled(self, container: Resource) -> None:
        assert "cpu" in container["resources"]["requests"]
        assert "cpu" not in container["resources"]["limits"]


class TestSettings:
    def test_every_setting_exists_and_is_accepted(
        self, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = {k.removeprefix("DARKROOM_").lower(): v for k, v in env.items() if k.startswith("DARKROOM_")}
        assert ours.keys() <= Settings.model_fields.keys()
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        assert Settings().model == "sdxl"

    def test_service_of_the_same_name_does_not_become_a_setting(self, pod: Resource) -> None:
        assert pod["enableServiceLinks"] is False

    def test_nothing_is_reported_to_anybody(self, env: dict[str, str]) -> None:
        assert env["BENTOML_DO_NOT_TRACK"] == "true"
        assert env["HF_HUB_DISABLE_TELEMETRY"] == "1"

    def test_keys_are_required_and_come_from_a_mounted_secret(
        self, pod: Resource, container: Resource, env: dict[str, str]
    ) -> None:
        file = Path(env["DARKROOM_API_KEYS_FILE"])
        mount = next(m for m in container["volumeMounts"] if m["mountPath"] == str(file.parent))
        secret = next(v["secret"] for v in pod["volumes"] if v["name"] == mount["name"])
        assert mount["readOnly"] is True
        assert [item["path"] for item in secret["items"]] == [file.name]
        assert not secret.get("optional", False)
        assert env.get("DARKROOM_AUTH", "keys") == "keys"

    def test_where_the_registry_is_comes_from_a_secret_that_need_not_be(
        self, container: Resource, env: dict[str, str]
    ) -> None:
        assert container["envFrom"] == [{"secretRef": {"name": "darkroom-registry", "optional": True}}]
        assert not {"DARKROOM_DATABASE", "DARKROOM_BLOBS"} & env.keys()

    def test_base_has_no_keys_of_its_own(self, base: dict[str, Resource], env: dict[str, str]) -> None:
        assert "Secret" not in base
        assert "DARKROOM_API_KEYS" not in env

    def test_example_key_is_well_formed_and_opens_nothing(self) -> None:
        keys = [ApiKey.model_validate(key) for key in json.loads((EXAMPLE / "api-keys.json").read_text())]
        assert [key.sha256 for key in keys] == ["0" * 64]

    def test_command_in_the_readme_makes_a_key_and_its_entry(self) -> None:
        (arguments,) = re.findall(r"^ *\.venv/bin/python (-m service key .*)$", README, re.MULTILINE)
        done = subprocess.run(
            [sys.executable, *arguments.split()], capture_output=True, text=True, check=True
        )
        (secret,) = re.findall(r"^dk_\S+$", done.stdout, re.MULTILINE)
        entry = ApiKey.model_validate_json(done.stdout.splitlines()[-1])
        assert entry.sha256 == hashlib.sha256(secret.encode()).hexdigest()
        assert entry.scopes == {"generate"}


class TestTraffic:
    def test_service_selects_the_pods_and_only_them(
        self, base: dict[str, Resource], deployment: Resource
    ) -> None:
        labels = deployment["template"]["metadata"]["labels"]
        assert base["Service"]["spec"]["selector"] == deployment["selector"]["matchLabels"]
        assert deployment["selector"]["matchLabels"].items() <= labels.items()

    def test_service_leads_from_port_80_to_the_port_that_is_served(
        self, base: dict[str, Resource], container: Resource
    ) -> None:
        (port,) = base["Service"]["spec"]["ports"]
        (served,) = container["ports"]
        assert (port["name"], port["port"], port["targetPort"]) == ("http", 80, served["name"])
        assert served["containerPort"] == 3000 == int(argument(container, "--port"))
        assert argument(container, "--host") == "0.0.0.0"

    def test_service_monitor_scrapes_the_services_port(self, base: dict[str, Resource]) -> None:
        (endpoint,) = base["ServiceMonitor"]["spec"]["endpoints"]
        wanted = base["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= base["Service"]["metadata"]["labels"].items()
        assert endpoint["port"] == base["Service"]["spec"]["ports"][0]["name"]
        assert endpoint["path"] == "/metrics"

    def test_everything_carries_the_recommended_labels(self, base: dict[str, Resource]) -> None:
        labels = [resource["metadata"]["labels"] for resource in base.values()]
        assert all(
            {"app.kubernetes.io/name", "app.kubernetes.io/component"} <= of_one.keys() for of_one in labels
        )
