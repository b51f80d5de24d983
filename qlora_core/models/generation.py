"""Generate text with a base model, a base model with adapter, or a merged one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit

from qlora_core.errors import BadInput
from qlora_core.facts.tokenizer import TokenizerPolicy

log = logging.getLogger("qlora-core")

CACHES = {"past_key_values", "cache_params", "state", "use_cache"}
"""Arguments of a forward that can go on from where it was."""
Prompt = str | Sequence[Mapping[str, Any]]
"""Plain text, or the messages of a conversation (``role``, ``content``)."""


@dataclass(frozen=True)
class Generated:
    """What a model wrote."""

    text: str
    """Without special tokens and without the stop token."""
    token_ids: list[int]
    """The new tokens; the stop token, where one came, is the last."""
    stopped: bool
    """Whether a stop token ended it, not the limit of new tokens."""


def generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop_token_ids: Sequence[int] | None = None,
    policy: TokenizerPolicy | None = None,
    streamer: Any = None,
) -> Generated:
    """The continuation of one prompt; see ``generate_batch``.

    ``streamer`` (transformers' ``TextStreamer``) gets each token as soon as it is there.
    """
    return generate_batch(
        model,
        tokenizer,
        [prompt],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_token_ids=stop_token_ids,
        policy=policy,
        streamer=streamer,
    )[0]


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop_token_ids: Sequence[int] | None = None,
    policy: TokenizerPolicy | None = None,
    streamer: Any = None,
) -> list[Generated]:
    """The continuations of all prompts, in one batch padded on the left.

    ``temperature`` 0 takes the likeliest token each time; otherwise tokens are drawn from the
    ``top_p`` nucleus, reproducibly with ``seed``. ``stop_token_ids`` None takes the stop tokens
    of tokenizer, ``policy`` and generation config. The model's mode and, with a seed, the random
    state are as before afterwards.
    Raises BadInput for an empty prompt, settings out of range, and messages without a template.
    """
    _check(max_new_tokens, temperature, top_p)
    if not prompts:
        return []
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    stops = list(stop_token_ids or _stop_ids(model, tokenizer, policy))
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    with _seeded(seed, _device(model)):
        return continuations(
            model,
            tokenizer,
            rows,
            max_new_tokens=max_new_tokens,
            stops=stops,
            sampling=sampling if temperature > 0 else None,
            streamer=streamer,
        )


def continuations(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Sequence[int],
    sampling: Mapping[str, Any] | None = None,
    streamer: Any = None,
) -> list[Generated]:
    """What follows each of ``rows``, prompts as token ids, in one batch padded on the left.

    ``sampling`` None takes the likeliest token each time. The model's mode is as before.
    """
    from transformers import GenerationConfig

    pad = _first(tokenizer.pad_token_id, *stops, 0)
    width, device = max(map(len, rows)), _device(model)
    ids = torch.tensor([[pad] * (width - len(row)) + [*row] for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    with _evaluating(model), _known_arguments(model) as cached, torch.no_grad():
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stops) or None,
            pad_token_id=pad,
            use_cache=cached,
            **(sampling or {"do_sample": False}),
        )
        output = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, streamer=streamer
        )
    return [_read(tokenizer, new, set(stops)) for new in output[:, width:].tolist()]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens of a prompt: text as the tokenizer encodes it, messages by the chat template."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids.pop()  # some tokenizers end every text; the model is to go on
    elif not tokenizer.chat_template:
        raise BadInput(
            "messages were given and the tokenizer has no chat template",
            "give the prompt as plain text, or name a family whose prompt format can be used",
        )
    else:
        from qlora_core.data.codec import codec_of, source_of
        from qlora_core.data.conform import checked
        from qlora_core.data.system import render_prompt

        source = source_of(tokenizer, None, None)
        template = codec_of(tokenizer, TokenizerPolicy()).template(source, {})
        text = render_prompt(template, checked(prompt))
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise BadInput("the prompt is empty", "give at least one token to go on from")
    return ids


def _check(max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise BadInput(f"max_new_tokens is {max_new_tokens}", "give 1 or more")
    if not 0 <= temperature < float("inf"):
        raise BadInput(f"temperature is {temperature}", "give 0 (likeliest token) or more")
    if not 0 < top_p <= 1:
        raise BadInput(f"top_p is {top_p}", "give a share above 0, at most 1")


def _stop_ids(model: Any, tokenizer: Any, policy: TokenizerPolicy | None) -> list[int]:
    from qlora_core.data.tokenizer import stop_token_ids

    ids = stop_token_ids(tokenizer, policy or TokenizerPolicy())
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stops = [*ids, *(stated if isinstance(stated, list) else [stated])]
    return [i for i in dict.fromkeys(stops) if i is not None]


def _read(tokenizer: Any, new: list[int], stops: set[int]) -> Generated:
    end = next((place for place, token in enumerate(new) if token in stops), None)
    kept = new if end is None else new[: end + 1]
    text = tokenizer.decode(kept if end is None else kept[:-1], skip_special_tokens=True)
    return Generated(text, kept, end is not None)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off and the cache usable; both as before afterwards."""
    training = [module for module in model.modules() if module.training]
    repacking = [m for m in model.modules() if _would_repack(m)]
    if repacking:
        log.warning(
            "bitsandbytes would repack %d 4-bit weights on this CPU at the first evaluation: "
            "switched off (support_avx512bf16_for_cpu = False)",
            len(repacking),
        )
        for module in repacking:
            module.support_avx512bf16_for_cpu = False
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _known_arguments(model: Any) -> Iterator[bool]:
    """Yields whether the model can use a cache; one that cannot is given only what it knows.

    transformers passes a cache to every model, and the last token alone once there is one: a
    forward of others, which does not name a cache, would fail, or see one token of its prompt.
    """
    wrapped = getattr(model, "get_base_model", None)
    base = model if wrapped is None else wrapped()
    forward = base.forward
    known = inspect.signature(forward).parameters
    if CACHES & known.keys():
        yield True
        return

    def filtered(*positional: Any, **named: Any) -> Any:
        return forward(*positional, **{k: v for k, v in named.items() if k in known})

    filtered.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    before = base.__dict__.get("forward")
    base.forward = filtered
    try:
        yield False
    finally:
        del base.forward
        if before is not None:
            base.forward = before


def _would_repack(module: Any) -> bool:
    return (
        isinstance(module, Linear4bit)
        and module.weight.device.type == "cpu"
        and bool(getattr(module, "support_avx512bf16_for_cpu", False))
    )


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """The given seed inside, the generators' former state afterwards."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type=device.type, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
