"""The service's metrics."""

import re

from service.metrics import Metrics


def test_services_in_one_process_do_not_share_metrics():
    one, other = Metrics(), Metrics()
    one.images_total.inc()
    assert b"darkroom_images_total 1.0" in one.render()
    assert b"darkroom_images_total 0.0" in other.render()


def test_our_metrics_have_the_prefix_and_the_process_is_measured_too():
    text = Metrics().render().decode()
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert {name for name in names if not name.startswith("darkroom_")} >= {"process_resident_memory_bytes"}
    assert {"darkroom_stage_seconds", "darkroom_queue_depth", "darkroom_build_info"} <= names
    assert not any(name.endswith("_created") for name in names)


def test_durations_reach_minutes():
    metrics = Metrics()
    metrics.stage_seconds.labels("base").observe(100)
    metrics.request_duration_seconds.labels("/v1/generate", "POST", "200").observe(400)
    text = metrics.render().decode()
    assert 'darkroom_stage_seconds_bucket{le="320.0",stage="base"} 1.0' in text
    assert 'le="640.0",method="POST",route="/v1/generate",status="200"} 1.0' in text
