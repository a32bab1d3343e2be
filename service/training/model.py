"""What a loaded model is to a recipe."""

import torch

from service.engine import presets
from service.engine.models import SMALL_UNET_PARAMETERS, Models
from service.training.recipes import BUCKET_PX, TrainedModel


def free_bytes(device: torch.device) -> int | None:
    """What nobody uses of the device's memory now; None where it does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def trained_model(models: Models, device: torch.device | None = None, *, held_bytes: int = 0) -> TrainedModel:
    """Sizes and layer names, read from the loaded base; it is to be trained on `device`, by default where it is.

    The memory is all that the device has, but for the `held_bytes` of a server on it: what a job that runs now has of
    it is free once the next one's turn has come.
    """
    device = models.device if device is None else device
    unet = models.unets["base"]
    linear = {name: module for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)}
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    beside = [models.text_encoder, models.text_encoder_2, models.vae]
    beside += [module for name, module in models.unets.items() if name != "base"]
    cuda = device.type == "cuda"
    return TrainedModel(
        name=models.name,
        edge=models.default_edge,
        bucket_px=min(BUCKET_PX, models.default_edge // 4),
        device="cuda" if cuda else "cpu",
        small=parameters < SMALL_UNET_PARAMETERS,
        unet_parameters=parameters,
        linear_layers={name: (module.out_features, module.in_features) for name, module in linear.items()},
        is_pocket=models.name == presets.POCKET.name,
        memory_bytes=torch.cuda.mem_get_info(device)[1] - held_bytes if cuda else None,
        held_bytes=held_bytes,
        beside_parameters=sum(parameter.numel() for module in beside for parameter in module.parameters()),
    )
