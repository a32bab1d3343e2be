"""CLIP scores: how well a picture fits its prompt in the eyes of a model that has seen many captioned pictures."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoConfig, CLIPModel, CLIPProcessor

from service.errors import ModelNotFound

log = structlog.get_logger()


class ClipScorer:
    """A CLIP model on the CPU, loaded at first use. One caller at a time: others wait, as tokenizers ask for.

    `source` is a folder as `save_pretrained` writes it, or an id of the hub, which `offline` looks for in the cache
    alone. Weights are read from safetensors only.
    """

    def __init__(self, source: str | Path, *, offline: bool) -> None:
        self.source, self.offline = str(source), offline
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None
        self._failure: ModelNotFound | None = None

    def __call__(self, pixels_HWC: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """`clip_score`: 100 × cosine of the embeddings of picture and prompt (after Hessel et al., arXiv:2104.08718).

        The picture's middle square is what the model sees, and of the prompt the first 77 tokens. Compare it between
        pictures of one prompt only. Raises ModelNotFound where `source` holds no CLIP model.
        """
        with self._lock:
            model, processor = self._ready()
            inputs = processor(
                text=[prompt],
                images=Image.fromarray(pixels_HWC),
                return_tensors="pt",
                truncation=True,
                max_length=model.config.text_config.max_position_embeddings,
            )
            with torch.no_grad():
                seen = model(**inputs)
        cosine = torch.nn.functional.cosine_similarity(seen.image_embeds, seen.text_embeds)
        return {"clip_score": 100 * float(cosine)}

    def is_there(self) -> bool:
        """Whether there is such a model. Loads it, and blocks meanwhile."""
        with self._lock:
            try:
                self._ready()
            except ModelNotFound as error:
                log.warning("there are no CLIP scores", reason=str(error))
                return False
        return True

    def _ready(self) -> tuple[Any, Any]:
        """Model and processor; one that could not be loaded is not looked for again, at every picture."""
        if self._failure is not None:
            raise self._failure
        if self._loaded is None:
            try:
                self._loaded = self._load()
            except ModelNotFound as error:
                self._failure = error
                raise
        return self._loaded

    def _load(self) -> tuple[Any, Any]:
        """Model and processor, of which every weight was there: transformers makes up what it does not find."""
        where = {"local_files_only": self.offline}
        try:
            kind = AutoConfig.from_pretrained(self.source, **where).model_type
            if kind != "clip":
                raise ModelNotFound(
                    f"'{self.source}' is a model of the kind '{kind}'; CLIP scores need one of 'clip'"
                )
            model, about = CLIPModel.from_pretrained(
                self.source, **where, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            processor = CLIPProcessor.from_pretrained(self.source, **where)
        except (OSError, ValueError) as error:
            raise ModelNotFound(
                f"there is no CLIP model in '{self.source}': it must be a folder with config.json, model.safetensors, "
                "the tokenizer and preprocessor_config.json, or an id of the hub"
                + (", which is in the cache already" if self.offline else "")
            ) from error
        if lacking := sorted(about["missing_keys"]):
            raise ModelNotFound(f"the CLIP model in '{self.source}' lacks weights, such as {lacking[0]}")
        return model.eval(), processor
