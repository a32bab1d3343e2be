"""Put a finished run's weights, figures, samples and card into the package, if they beat the ones there.

`python -m service.pocket.publish runs/pocket`
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import WEIGHTS
from .intervals import Figure, read_figures

PUBLISHED = ("weights", "samples", "evaluation.json", "README.md")


def beats(new: Sequence[Figure], old: Sequence[Figure]) -> bool:
    """True if `new` meets more targets than `old`, or as many and has better shares on average."""
    return _rank(new) > _rank(old)


def _rank(figures: Sequence[Figure]) -> tuple[int, float]:
    promised = [figure for figure in figures if figure.target is not None]
    shares = [figure.value for figure in promised if figure.kind == "share"]
    return sum(figure.is_met for figure in promised), sum(shares) / max(1, len(shares))


def publish(run: Path, package: Path) -> None:
    """Copy the published parts of `run` over those of `package`, each whole before it replaces the old."""
    for name in PUBLISHED:
        source, target = run / name, package / name
        fresh = package / f"{name}.new"
        if source.is_dir():
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.copytree(source, fresh)
            shutil.rmtree(target, ignore_errors=True)
        else:
            shutil.copy(source, fresh)
        fresh.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.pocket.publish", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    options = parser.parse_args()
    package = WEIGHTS.parent
    committed = package / "evaluation.json"
    if committed.exists() and not beats(
        read_figures(options.run / "evaluation.json"), read_figures(committed)
    ):
        raise SystemExit(f"the weights in {package} are better by their evaluation; nothing was changed")
    publish(options.run, package)


if __name__ == "__main__":
    main()
