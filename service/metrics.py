"""All metrics of the service, declared once. Names end in their unit; no label holds what a caller sends."""

import prometheus_client
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import generate_latest

from service import __version__

REQUEST_SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    320.0,
    640.0,
)
STAGE_SECONDS = (
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    320.0,
)
STEP_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.5,
    5.0,
    10.0,
    20.0,
    60.0,
    120.0,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The service's metrics in a registry of their own, as plain prometheus_client objects.

    The edge observes requests, refusals and cancellations by disconnect or shutdown; who does the work
    observes the rest.
    """

    def __init__(self) -> None:
        # A `_created` series beside every counter and histogram doubles the scrape and tells nothing.
        prometheus_client.disable_created_metrics()
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, labels, namespace="darkroom", buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, namespace="darkroom", registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, namespace="darkroom", registry=registry)

        self.request_duration_seconds = histogram(
            "request_duration_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ("route", "method", "status"),
            REQUEST_SECONDS,
        )
        self.stage_seconds = histogram(
            "stage_seconds",
            "Seconds that a run spent in a stage: fetch, queue, encode, base, refiner, decode, encode_image.",
            ("stage",),
            STAGE_SECONDS,
        )
        self.step_seconds = histogram(
            "step_seconds", "Seconds of one evaluation of a UNet: base, refiner.", ("unet",), STEP_SECONDS
        )
        self.queue_estimated_seconds = gauge(
            "queue_estimated_seconds", "Device seconds that accepted work still needs, as estimated."
        )
        self.queue_depth = gauge("queue_depth", "Runs that are accepted and not finished.")
        self.images_total = counter("images", "Images made.")
        self.rejected_total = counter(
            "rejected", "Requests refused, by the code of the problem.", ("reason",)
        )
        self.cancelled_total = counter(
            "cancelled", "Work that was given up: disconnected, deadline, shutdown.", ("reason",)
        )
        self.unusable_images_total = counter(
            "unusable_images", "Images not delivered: nan, black, flat.", ("reason",)
        )
        self.lora_activation_seconds = histogram(
            "lora_activation_seconds",
            "Seconds to bring a LoRA on: store or disk (to memory), host (to the device), device (into the weights).",
            ("tier",),
            STAGE_SECONDS,
        )
        self.lora_resident_bytes = Gauge(
            "lora_resident_bytes",
            "Bytes of LoRAs that a tier holds: device, host.",
            ("tier",),
            namespace="darkroom",
            registry=registry,
        )
        self.lora_evictions_total = counter(
            "lora_evictions", "LoRAs that a tier dropped for others.", ("tier",)
        )
        self.lora_refusals_total = counter(
            "lora_refusals", "LoRA files that intake refused, by each of its reasons.", ("reason",)
        )
        self.train_jobs_total = counter(
            "train_jobs",
            "Train jobs that were queued by a request here, or brought to an end by a process of this one.",
            ("state",),
        )
        self.comparisons_total = counter(
            "comparisons",
            "Comparisons that were queued by a request here, or brought to an end by this process.",
            ("state",),
        )
        self.base_checksum_ok = gauge(
            "base_checksum_ok", "1 while the weights in memory are the ones that were loaded, else 0."
        )
        self.canary_ok = gauge("canary_ok", "1 while the canary picture is the one made at first, else 0.")
        self.device_memory_bytes = gauge("device_memory_bytes", "Memory in use on the device.")
        self.ready = gauge("ready", "1 when a picture can be made, else 0.")
        self.build = Info("build", "What is running.", namespace="darkroom", registry=registry)
        self.build.info({"version": __version__})
        self.model = Info("model", "The weights that are resident.", namespace="darkroom", registry=registry)

        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.PlatformCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)

    def observe_activation(self, tier: str, seconds: float) -> None:
        """A LoRA was brought on from that tier."""
        self.lora_activation_seconds.labels(tier).observe(seconds)

    def observe_eviction(self, tier: str) -> None:
        """That tier dropped a LoRA for others."""
        self.lora_evictions_total.labels(tier).inc()

    def observe_residency(self, tier: str, size_bytes: int) -> None:
        """That tier holds so many bytes now."""
        self.lora_resident_bytes.labels(tier).set(size_bytes)

    def observe_soundness(self, what: str, sound: bool) -> None:
        """The weights, or the canary, were found as they should be, or not."""
        (self.base_checksum_ok if what == "weights" else self.canary_ok).set(sound)

    def render(self) -> bytes:
        """Everything in Prometheus' text format; `CONTENT_TYPE` names it."""
        return generate_latest(self.registry)
