"""The LoRAs of a request as an order has them: every value checked against the LoRA, the model and the request itself.

A value that would be ignored is an error.
"""

import difflib
from collections.abc import Iterator, Sequence

from darkroom.types import GenerateRequest, LoraReceipt, LoraUse
from lora_registry import LoraVersion
from service.engine.loras.words import is_said
from service.engine.models import Models
from service.engine.orders import LoraOrder
from service.engine.prompts import ParsedPrompt
from service.errors import InvalidOption


def lora_orders(
    request: GenerateRequest,
    versions: Sequence[LoraVersion],
    models: Models,
    *,
    prompts: Sequence[ParsedPrompt],
    base_share: float,
) -> tuple[LoraOrder, ...]:
    """The request's LoRAs with the versions that their refs mean. `base_share` is the share of steps of the base.

    Raises:
        InvalidOption: one cannot be used as the request says.
    """
    text = "\n".join(prompt.plain for prompt in prompts)
    found: list[LoraOrder] = []
    said: dict[str, LoraOrder] = {}
    for place, (use, version) in enumerate(zip(request.loras, versions, strict=True)):
        for field, fault in _faults(use, version, request, models, text, base_share):
            raise InvalidOption(fault, pointer=f"/loras/{place}/{field}")
        lora = LoraOrder(
            ref=version.ref,
            name=version.name,
            digest=version.digest,
            auto_v3=version.auto_v3,
            weight=use.weight,
            scope=use.scope,
            start=use.start,
            end=use.end,
            components=tuple((use.components or {}).items()),
            blocks=tuple((use.blocks or {}).items()),
            touches=version.components,
            tokens=_tokens(version),
            sham=use.sham,
        )
        for token in lora.tokens:
            other = said.setdefault(token.casefold(), lora)
            if other.adapter != lora.adapter:
                raise InvalidOption(
                    f"{_called(lora)} and {_called(other)} both stand for '{token}' in a prompt; only one of them can",
                    pointer=f"/loras/{place}/{'sham' if other.digest == lora.digest else 'ref'}",
                )
        found.append(lora)
    return tuple(found)


def lora_receipt(lora: LoraOrder) -> LoraReceipt:
    """What a picture's receipt says of one of its LoRAs."""
    return LoraReceipt(
        ref=lora.ref,
        digest=lora.digest,
        auto_v3=lora.auto_v3,
        weight=lora.weight,
        scope=lora.scope,
        start=lora.start,
        end=lora.end,
        components=dict(lora.components) or None,
        blocks=dict(lora.blocks) or None,
        sham=lora.sham,
    )


def _faults(
    use: LoraUse,
    version: LoraVersion,
    request: GenerateRequest,
    models: Models,
    text: str,
    base_share: float,
) -> Iterator[tuple[str, str]]:
    """What is wrong, as (field, sentence)."""
    yield from _faults_of_components(use, version)
    yield from _faults_of_blocks(use, version, models)
    yield from _faults_of_sham(use, version)
    if use.scope == "uncond" and request.guidance_scale <= 1:
        yield "scope", "there is no uncond branch at a guidance_scale of 1 or below"
    unsaid = request.negative_prompt is None and "base" in models.force_zeros_for_empty_prompt
    if use.scope == "uncond" and unsaid and "unet" not in version.components:
        yield (
            "scope",
            "without a negative prompt the uncond branch is zeros, which no text encoder has a part in",
        )
    steps = request.num_inference_steps
    base_steps = round(steps * base_share)
    if version.kind != "embedding" and not any(
        use.start <= step / steps < use.end for step in range(base_steps)
    ):
        yield (
            "start",
            f"none of the base's steps (the first {base_steps} of {steps}) lies in this window; the refiner takes no "
            "LoRA",
        )
    if version.kind == "embedding":
        yield from _faults_of_embedding(use, version, text)


def _tokens(version: LoraVersion) -> tuple[str, ...]:
    """What its embeddings are called in a prompt; a file that does not say so has the LoRA's own name for it."""
    return version.tokens or ((version.name,) if version.kind == "embedding" else ())


def _called(lora: LoraOrder) -> str:
    return f"'{lora.ref}'" if lora.sham is None else f"the sham {lora.sham} of '{lora.ref}'"


def _faults_of_sham(use: LoraUse, version: LoraVersion) -> Iterator[tuple[str, str]]:
    if use.sham is not None and "dora" in version.algorithms:
        yield (
            "sham",
            f"'{version.ref}' is a DoRA, which has no sham: what it changes depends on the model's own weights",
        )


def _faults_of_components(use: LoraUse, version: LoraVersion) -> Iterator[tuple[str, str]]:
    for component in use.components or {}:
        if component not in version.components:
            has = ", ".join(version.components)
            yield f"components/{component}", f"'{version.ref}' does not touch {component}; it has {has}"


def _faults_of_blocks(use: LoraUse, version: LoraVersion, models: Models) -> Iterator[tuple[str, str]]:
    if not use.blocks:
        return
    if "unet" not in version.components:
        yield "blocks", f"'{version.ref}' does not touch the UNet, which alone has blocks"
        return
    known = models.weights["unet"].blocks
    for name in use.blocks:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean '{near[0]}'?" if near else "blocks are named as 'down_blocks.1' or 'mid_block'"
            )
            yield (
                f"blocks/{name.replace('~', '~0').replace('/', '~1')}",
                f"the base UNet has no '{name}'; {hint}",
            )


def _faults_of_embedding(use: LoraUse, version: LoraVersion, text: str) -> Iterator[tuple[str, str]]:
    plain = LoraUse(ref=use.ref)
    for field in ("weight", "scope", "start", "end", "components", "blocks"):
        if getattr(use, field) != getattr(plain, field):
            yield (
                field,
                f"'{version.ref}' is an embedding: it counts where a prompt says it, as (token)1.2 weights it",
            )
    tokens = _tokens(version)
    if not any(is_said(token, text) for token in tokens):
        wanted = " or ".join(f"'{token}'" for token in tokens)
        yield "ref", f"'{version.ref}' is an embedding, and neither prompt says {wanted}"
