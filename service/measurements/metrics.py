"""What each metric is: its title, its unit, and whether more of it is good."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

from darkroom.types import CompareMetric, Direction, MetricInfo


def _info(
    metric: CompareMetric,
    title: str,
    unit: str = "",
    kind: Literal["value", "distance"] = "value",
    better: Direction | None = None,
) -> tuple[CompareMetric, MetricInfo]:
    return metric, MetricInfo(metric=metric, title=title, unit=unit, kind=kind, better=better)


METRICS: Final[Mapping[CompareMetric, MetricInfo]] = MappingProxyType(
    dict(
        (
            _info("sharpness", "sharpness (variance of the Laplacian)", "grey levels²"),
            _info("high_frequency", "fine detail (share of energy in high frequencies)", "share"),
            _info("colorfulness", "colourfulness (Hasler and Süsstrunk)", "levels of 255"),
            _info("contrast", "contrast (root mean square of luma)", "0 to 0.5"),
            _info("luminance", "luminance (mean luma)", "0 to 1"),
            _info("edge_density", "edge density (share of pixels on edges)", "share"),
            _info(
                "prompt_adherence",
                "prompt adherence (by how much the prompt lowers the model's own error)",
                better="higher",
            ),
            _info("clip_score", "CLIP score (100 × cosine of picture and prompt)", better="higher"),
            _info(
                "pocket_accuracy",
                "pocket accuracy (asked properties that the picture shows)",
                "share",
                better="higher",
            ),
            _info(
                "pocket_quality",
                "pocket quality (overlap with the asked shape, purity, sharpness)",
                "0 to 1",
                better="higher",
            ),
            _info(
                "ssim",
                "SSIM (structural similarity to the baseline's picture)",
                "1 is the same",
                kind="distance",
            ),
            _info("psnr", "PSNR (signal to noise, against the baseline's picture)", "dB", kind="distance"),
            _info(
                "perceptual_distance",
                "perceptual distance (how far the composition moved)",
                "ΔE",
                kind="distance",
            ),
        )
    )
)
"""More sharpness may be noise and more colour garish: of what is only in the pixels, neither way is good by itself."""

EQUAL: Final[Mapping[CompareMetric, float]] = MappingProxyType(
    {"ssim": 1.0, "psnr": 100.0, "perceptual_distance": 0.0}
)
"""What each distance is between pictures that are the same: no value lies beyond it."""


SCORES: Final = frozenset({"prompt_adherence", "clip_score", "pocket_accuracy", "pocket_quality"})
"""What somebody has to be asked for who knows more than pixels."""
OF_PIXELS: Final = tuple(metric for metric in METRICS if metric not in SCORES)


def described(
    metrics: Sequence[CompareMetric], decides: CompareMetric | None, better: Direction | None
) -> list[MetricInfo]:
    """The metrics of one comparison, the one that decides marked, and its better way as the request has it."""
    return [
        METRICS[metric].model_copy(
            update={"decides": True, "better": good_direction(metric, decides, better)}
        )
        if metric == decides
        else METRICS[metric]
        for metric in metrics
    ]


def good_direction(
    metric: CompareMetric, decides: CompareMetric | None, better: Direction | None
) -> Direction | None:
    """Which way is good: what the request says of the metric that decides, else what the metric itself says."""
    return (better if metric == decides else None) or METRICS[metric].better
