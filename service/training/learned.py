"""What is learnt: LoRA factors beside the frozen weights (by peft), vectors of a token, and the file they become."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load, save

from darkroom.types import TrainRequest
from lora_registry.records import Component
from service.engine.models import Models
from service.training.recipes import targeted_layers

ADAPTER: Final = "default"
_ROLES: Final = {
    f".lora_A.{ADAPTER}.weight": "lora_A.weight",
    f".lora_B.{ADAPTER}.weight": "lora_B.weight",
    f".lora_magnitude_vector.{ADAPTER}.weight": "lora_magnitude_vector",
}
ENCODER_LAYERS: Final = ("q_proj", "k_proj", "v_proj", "out_proj")


class Learned:
    """The parameters of a training, in fp32, by a name that a file can bear. They are in the models until `removed`."""

    def __init__(self, models: Models, request: TrainRequest, linear_layers: tuple[str, ...]) -> None:
        recipe = request.recipe
        assert recipe.rank is not None
        assert recipe.alpha is not None
        self._models, self._request = models, request
        self._scale = recipe.alpha / recipe.rank
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.rates: dict[str, float] = {}
        """Learning rate of each parameter."""
        self._modules: dict[Component, torch.nn.Module] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            if request.kind != "embedding":
                layers = targeted_layers(recipe.targets, linear_layers)
                self._inject("unet", models.unets["base"], list(layers), recipe.learning_rate)
            if recipe.text_encoder_learning_rate is not None:
                for component, encoder in self._encoders().items():
                    names = [
                        name
                        for name, module in encoder.named_modules()
                        if isinstance(module, torch.nn.Linear) and name.endswith(ENCODER_LAYERS)
                    ]
                    self._inject(component, encoder, names, recipe.text_encoder_learning_rate)
            self.vectors: dict[Component, torch.nn.Parameter] = (
                self._first_vectors() if request.token is not None else {}
            )
        for component, vectors in self.vectors.items():
            name = f"{component}.vectors"
            self.parameters[name] = vectors
            self.rates[name] = recipe.embedding_learning_rate or 0.0
        self.first_values = {name: value.clone() for name, value in self.values().items()}
        """With which the models are as they were, but for vectors, which nobody has said anything about yet."""

    @property
    def bends_text(self) -> bool:
        """Whether captions must be encoded anew at every step."""
        return bool(self.vectors) or self._modules.keys() > {"unet"}

    def file(self, values: Mapping[str, torch.Tensor], *, dtype: torch.dtype) -> bytes:
        """A LoRA file with diffusers' and peft's names, alpha multiplied in, so that no reader can miss it."""
        tensors = {
            self._key(name): (value.detach().float() * self._scale_of(name)).to("cpu", dtype).contiguous()
            for name, value in values.items()
        }
        # One entry only: safetensors writes several in any order, and equal trainings would be unequal files.
        return save(tensors, {"format": "pt"})

    def from_file(self, file: bytes) -> dict[str, torch.Tensor]:
        """The values that `file` wrote, as exact as its dtype is."""
        tensors = load(file)
        return {name: tensors[self._key(name)].float() / self._scale_of(name) for name in self.parameters}

    def _key(self, name: str) -> str:
        component, _, rest = name.partition(".")
        if rest != "vectors":
            return name
        bundled = "clip_l" if component == "text_encoder" else "clip_g"
        return f"bundle_emb.{self._request.token}.{bundled}"

    def _scale_of(self, name: str) -> float:
        return self._scale if name.endswith("lora_B.weight") else 1.0

    def values(self) -> dict[str, torch.Tensor]:
        """Everything that is learnt, as it is now."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @contextmanager
    def wearing(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside the block the models have these values, after it their own again."""
        own = {name: value.clone() for name, value in self.values().items()}
        self.put(values)
        try:
            yield
        finally:
            self.put(own)

    @torch.no_grad()
    def put(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set every parameter. Raises KeyError or RuntimeError where `values` are of another training."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def remove(self) -> None:
        """Take the factors out again: the models are what they were before."""
        for module in self._modules.values():
            for name, layer in list(module.named_modules()):
                if isinstance(layer, BaseTunerLayer):
                    parent_name, _, child = name.rpartition(".")
                    setattr(module.get_submodule(parent_name), child, layer.get_base_layer())
            if hasattr(module, "peft_config"):
                del module.peft_config
        self._modules.clear()
        self.parameters.clear()

    def _encoders(self) -> dict[Component, torch.nn.Module]:
        return {"text_encoder": self._models.text_encoder, "text_encoder_2": self._models.text_encoder_2}

    def _inject(
        self, component: Component, module: torch.nn.Module, layers: list[str], rate: float | None
    ) -> None:
        recipe = self._request.recipe
        config = LoraConfig(
            r=recipe.rank or 1,
            lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # peft takes fractions as well
            target_modules=layers,
            use_dora=recipe.use_dora,
            init_lora_weights="gaussian",
        )
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
        module.train()
        self._modules[component] = module
        for name, parameter in module.named_parameters():
            role = next((role for role in _ROLES if name.endswith(role)), None)
            if role is None:
                parameter.requires_grad_(False)
                continue
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            key = f"{component}.{name.removesuffix(role)}.{_ROLES[role]}"
            self.parameters[key] = parameter
            self.rates[key] = rate or 0.0

    def _first_vectors(self) -> dict[Component, torch.nn.Parameter]:
        """The mean of all words, or the first token of the initializer, with a little noise to tell vectors apart."""
        recipe = self._request.recipe
        first: dict[Component, torch.nn.Parameter] = {}
        tokenizers = {"text_encoder": self._models.tokenizer, "text_encoder_2": self._models.tokenizer_2}
        for component, encoder in self._encoders().items():
            table = encoder.get_input_embeddings().weight.detach().float()  # type: ignore[operator]
            ids = tokenizers[component](recipe.initializer, add_special_tokens=False)["input_ids"]
            start = table[ids[0]] if ids else table.mean(0)
            noise = torch.randn(recipe.num_vectors, table.shape[1]) * table.std() * 0.1
            first[component] = torch.nn.Parameter(start.cpu() + noise)
            first[component].data = first[component].data.to(table.device)
        return first
