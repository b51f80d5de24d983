"""Which share of a type's decoder is 4-bit at its full size: by the names of a small, real load."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qlora_core.models.skeleton import build_skeleton

LEAST = 0.98
_TIMES = 16
_WIDTHS = {
    "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size",
    "d_model", "ffn_hidden_size", "ffn_hidden_dim", "q_lora_rank", "kv_lora_rank",
}  # fmt: skip
BYTES = 2
"""Per weight in 16 bits."""


def full_size(small: Mapping[str, Any], packed: Iterable[str]) -> tuple[float, dict[str, int]]:
    """The 4-bit share of the decoder's matrix weights, and the bytes of the rest by name.

    The model is that of the type's default config, on the meta device, or, of the few types
    whose default cannot be built, the ``small`` one made sixteen times as wide. ``packed`` names
    the 4-bit weights of the small one. Names are compared without numbers, from the layer in.
    """
    known = {_inner(name) for name in packed}
    counts: Counter[str] = Counter()
    for name, weights in matrices(large(small)):
        counts[_inner(name)] += weights
    rest = {name: BYTES * count for name, count in counts.items() if name not in known}
    return 1 - sum(rest.values()) / BYTES / max(counts.total(), 1), rest


def large(small: Mapping[str, Any]) -> Any:
    """The model of the type's default config, or of ``small`` made wider, on the meta device."""
    kind = small["model_type"]
    for config in (lambda: CONFIG_MAPPING[kind]().to_dict(), lambda: _wider(small), lambda: small):
        with suppress(Exception):  # defaults that do not fit together; sizes that must agree
            return build_skeleton({**config(), "model_type": kind})
    raise AssertionError(f"{kind} was built a moment ago")


def _wider(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _wider(value)
        if isinstance(value, dict)
        else value * _TIMES
        if key in _WIDTHS
        else value
        for key, value in config.items()
    }


def matrices(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Name and number of weights of every matrix of a decoder layer, tied ones once.

    Embeddings, heads and convolutions are none.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        if (
            path.startswith("lm_head")
            or isinstance(module, nn.Embedding | _ConvNd)
            or not re.search(r"\.\d+(\.|$)", path)
        ):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{name}", parameter.numel()


def _inner(name: str) -> str:
    inner = re.split(r"\.\d+\.", name, maxsplit=1)[-1]
    return re.sub(r"\.\d+\.", ".*.", inner)


def listed(rest: dict[str, Any]) -> str:
    """The largest of ``rest``, in binary megabytes."""
    largest = sorted(rest.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{name} {count / 2**20:,.1f} MiB" for name, count in largest)
