"""Optimisers by name, each parameter at its own rate, and how the rate goes over the steps."""

import math
from collections import defaultdict
from typing import Any

import torch

from darkroom.types import TrainRecipe
from service.training.learned import Learned
from service.training.recipes import check_installed


def optimizer_for(recipe: TrainRecipe, learned: Learned) -> torch.optim.Optimizer:
    """The recipe's optimiser over what is learnt, a group for each rate.

    Raises:
        InvalidOption: it needs a package that is not installed.
    """
    by_rate: dict[float, list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in learned.parameters.items():
        by_rate[learned.rates[name]].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": recipe.weight_decay}
        for rate, parameters in by_rate.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    check_installed(recipe.optimizer)
    if recipe.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]

        return AdamW8bit(groups)
    from prodigyopt import Prodigy  # type: ignore[import-untyped]

    return Prodigy(groups, safeguard_warmup=True, use_bias_correction=True)


def rate_factor(recipe: TrainRecipe, step: int) -> float:
    """What the learning rate is multiplied by at a step: a linear rise, then constant or down to nothing."""
    steps, warmup = recipe.max_train_steps or 1, recipe.lr_warmup_steps or 0
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if recipe.lr_scheduler == "linear":
        return 1 - done
    if recipe.lr_scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
