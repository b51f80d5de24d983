"""What a linear layer does in its decoder layer, read off the modules around it.

No family's name is consulted: the evidence is the class of the layer, what stands beside it,
the words that transformers uses in attribute and class names, and the source of the module
that owns it (a weight that is read there is not, or not only, used by calling the layer).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

ADAPTABLE = ("attention", "mlp", "recurrent")
NEVER = {
    "router": "a router: adapting it unbalances the experts",
    "indexer": "chooses tokens by a top-k, through which no gradient comes",
    "cross": "cross-attention: a text generator gives it nothing to attend to",
    "raw": "its weight is used directly, so that an adapter is passed by",
    "unusual": "a subclass of Linear whose output is not that of a linear layer",
}
"""Roles of linear layers that carry no adapter -> why."""
RAW_IN_4_BIT = "its weight is used directly, which fails on packed 4-bit values"
DTYPE_IN_4_BIT = (
    "its input is cast to its weight's dtype, which packed 4-bit values make an integer"
)

_ATTENTION_CLASS = re.compile(r"Attention|Attn")
_MLP_CLASS = re.compile(r"MLP|Mlp|FeedForward|FFN|Expert|GLU|Intermediate")
_ATTENTION_NAMES = re.compile(
    r"(q|k|v|query|key|value|qkv|Wqkv|Wq|c_attn|query_key_value)(_proj|_lin)?|(q|kv)_[ab]_proj"
)
_CROSS = re.compile(r"cross|encoder_attn|enc_dec", re.IGNORECASE)
_ROUTER = re.compile(r"router|(^|_)gate$|TopK", re.IGNORECASE)
_SETUP = {"__init__", "_init_weights", "init_weights", "reset_parameters", "extra_repr"}


class Link(NamedTuple):
    """A module on the way from a decoder layer down to a linear layer."""

    name: str
    module: nn.Module


def linear_kind(module: nn.Module) -> str | None:
    """``linear``, ``subclass`` (of Linear) or ``conv1d`` (weight stored as in x out), else None."""
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, nn.Linear):
        return "linear" if type(module) is nn.Linear else "subclass"
    return None


def features(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear layer of any kind."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def role(chain: Sequence[Link], module: nn.Module, experts: Collection[int]) -> str:
    """The role of the linear layer ``module``.

    ``chain`` leads from the decoder layer (first) to the layer itself (last); ``experts``
    holds the numbers of experts of the routed blocks that it lies in.
    """
    above = chain[:-1]
    inner = [link.name for link in chain[1:]]
    if any("indexer" in name.lower() for name in inner):
        return "indexer"
    if _is_router(chain, module, experts):
        return "router"
    if any(_CROSS.search(name) for name in inner):
        return "cross"
    owner: Any = type(above[-1].module)
    if chain[-1].name in raw_weights(owner):
        return "raw"
    if linear_kind(module) == "subclass" and not _acts_linear(module):
        return "unusual"
    return _kind_of_block(above)


def keep_reason(chain: Sequence[Link]) -> str | None:
    """Why the last of ``chain`` must not become a 4-bit module, or None where it may."""
    owner: Any = type(chain[-2].module)
    name = chain[-1].name
    if name in raw_weights(owner):
        return RAW_IN_4_BIT
    return DTYPE_IN_4_BIT if name in cast_weights(owner) else None


@cache
def raw_weights(owner: type[Any]) -> frozenset[str]:
    """Names of child layers whose weight the code of ``owner`` reads instead of calling them.

    A weight that is only sliced, in a layer that is called as well, is left out: such code
    emulates tensor parallelism, and only runs when a checkpoint asks for it.
    """
    code = _source(owner)
    reads = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|size|ndim|is_))(\[?)")
    called = set(re.findall(r"self\.(\w+)\(", code))
    return frozenset(n for n, sliced in reads.findall(code) if not (sliced and n in called))


@cache
def cast_weights(owner: type[Any]) -> frozenset[str]:
    """Names of child layers to whose weight's dtype the code of ``owner`` casts an input."""
    casts = re.compile(r"\.to\((?:dtype=)?self\.(\w+)\.weight\.dtype\)")
    return frozenset(casts.findall(_source(owner)))


@cache
def reads_own(owner: type[Any], name: str) -> bool:
    """Whether the code of ``owner`` reads its parameter ``name``; True where there is no code."""
    code = _source(owner)
    return not code or re.search(rf"\bself\.{re.escape(name)}\b", code) is not None


def _source(owner: type[Any]) -> str:
    """The code that runs in ``owner``: not its set-up, and nothing that torch brings."""
    parts = []
    for base in owner.__mro__:
        if base.__module__.startswith("torch") or base.__name__ == "PreTrainedModel":
            continue
        for name, value in vars(base).items():
            function = inspect.unwrap(value) if callable(value) else None
            if name not in _SETUP and inspect.isfunction(function):
                parts.append(_code(function))
    return "\n".join(parts)


def _code(function: object) -> str:
    try:
        return inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):  # compiled, or written in a session
        return ""


def names_router(name: str, module: nn.Module) -> bool:
    """Whether the names of a module say that it chooses experts."""
    return any(_ROUTER.search(text) for text in (name, type(module).__name__))


def _is_router(chain: Sequence[Link], module: nn.Module, experts: Collection[int]) -> bool:
    width = features(module)[1]
    inner = chain[1:]
    if any("router" in text.lower() for link in inner for text in (link.name, _class(link))):
        return True
    if width == 1 and experts:
        return _ROUTER.search(inner[-1].name) is not None
    # a shared expert may be as wide as there are experts: then its name and place tell
    return width in experts and (len(inner) < 3 or any(names_router(*link) for link in inner))


def _acts_linear(module: nn.Module) -> bool:
    """Whether the layer maps (1, in) to (1, out), as an adapter beside it does."""
    width_in, width_out = features(module)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    try:
        with torch.no_grad():
            out = module(torch.empty(1, width_in, dtype=weight.dtype, device="meta"))
    except Exception:  # whatever it wants, it is not one tensor
        return False
    return isinstance(out, torch.Tensor) and tuple(out.shape) == (1, width_out)


def _kind_of_block(above: Sequence[Link]) -> str:
    for link in reversed(above[1:]):
        if _is_recurrent(link.module):
            return "recurrent"
        if verdict := _verdict(link):
            return verdict
    whole = above[0]
    if len(above) == 1 and not re.search(r"Layer|Block", _class(whole)):
        return _verdict(whole) or "mlp"
    return "mlp"


def _verdict(link: Link) -> str | None:
    if _MLP_CLASS.search(_class(link)):
        return "mlp"
    names = [name for name, _ in link.module.named_children()]
    if _ATTENTION_CLASS.search(_class(link)) or any(map(_ATTENTION_NAMES.fullmatch, names)):
        return "attention"
    return None


def _is_recurrent(module: nn.Module) -> bool:
    """A state-space, gated-delta or short-convolution mixer: it convolves along the text."""
    convolves = any(isinstance(c, nn.Conv1d) and c.groups > 1 for c in module.children())
    return convolves or any(name in ("A_log", "dt_bias") for name in module._parameters)


def _class(link: Link) -> str:
    return type(link.module).__name__
