"""Samples one after the other in one row, without padding, none of which sees another.

Positions start anew with each sample, and no attention mask is passed: from the positions
transformers makes a rule that keeps the samples apart. Where the model computes attention by
``scaled_dot_product_attention`` ours runs it sample by sample, which costs a CPU a quarter of
one attention over the whole row, and asks that rule for a sample's own part alone
(``row_mask``). Some families cannot keep samples apart (alibi, recurrent layers); whether this
one can is measured.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from qlora_core.kernels.head_probe import LabelHead, Unfit, evaluating, refusing
from qlora_core.kernels.row_mask import RowMask, computing, row_mask

MASKS = {"qlora_core_rows": row_mask, "qlora_core_segments": sdpa_mask}
"""Our attention's names, by the masks that come with it: the second is for decoders that work on
their masks themselves, which takes the whole of them."""
LENGTHS = (11, 7)
APART = 1e-2
"""What may change in a sample beside another one on a GPU, which chooses its kernels by the number
of tokens that an expert gets; on a CPU nothing may."""
CLOSE = 0.05
"""Of packed to padded hidden states in 16 bits; another position or a sample seen is far more."""


def packed_inputs(input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """What a decoder takes for the real tokens of (samples, length), in one row.

    Padding is on the right. Lengths go by the names that transformers gives to kernels that
    take samples of several lengths; layers that do not know them ignore them.
    """
    real = attention_mask.bool()
    lengths: list[int] = real.sum(dim=1).tolist()
    places = torch.arange(real.shape[1], device=real.device).expand_as(real)
    ends = [0, *accumulate(lengths)]
    bounds = torch.tensor(ends, dtype=torch.int32, device=real.device)
    _bounds[bounds] = ends
    longest = max(lengths)
    return {
        "input_ids": input_ids[real][None],
        "position_ids": places[real][None],
        "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds,
        "max_length_q": longest, "max_length_k": longest,
    }  # fmt: skip


_bounds: Any = WeakTensorKeyDictionary()
"""What ``packed_inputs`` wrote into tensors: asking a GPU for it in every layer would stop it."""


def bounds_of(tensor: Tensor) -> list[int]:
    """The starts of a row's samples and its end, out of the tensor of ``packed_inputs``."""
    known: list[int] | None = _bounds.get(tensor)
    return tensor.tolist() if known is None else known


def packed_states(
    decoder: Any, input_ids: Tensor, attention_mask: Tensor, answering: Tensor | None = None
) -> Tensor:
    """Hidden states of the real tokens of (samples, length): (real tokens, width).

    With ``answering``, places in the row, only theirs are right: a last layer by hand computes
    no others.
    """
    inputs = packed_inputs(input_ids, attention_mask)
    with computing(answering):
        states: Tensor = decoder(**inputs, use_cache=False).last_hidden_state
    return states[0]


def segment_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: RowMask | Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention by SDPA, sample by sample where the row holds several.

    ``query`` is (1, heads, tokens, width), the result (1, tokens, heads, width). Each sample
    keeps its own part of the mask (a sliding window), or none where it is plainly causal.
    """
    bounds = settings.get("cu_seq_lens_q")
    if bounds is None or settings.get("position_bias") is not None:
        whole: tuple[Tensor, None]
        whole = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return whole
    if not _takes_groups(query):
        module, key, value = _without_groups(module, query, key, value)
    parts = []
    for first, last in pairwise(bounds_of(bounds)):
        own = slice(first, last)
        mask = None if attention_mask is None else _own_part(attention_mask, first, last)
        states = (tensor[:, :, own] for tensor in (query, key, value))
        parts.append(sdpa_attention_forward(module, *states, mask, **settings)[0])
    return torch.cat(parts, dim=1), None


def _takes_groups(query: Tensor) -> bool:
    """Whether a kernel that writes no scores out takes keys of several queries on its device.

    On CUDA only flash attention does, in 16 bits and from Ampere on
    (``check_batch_size_and_num_heads_dense`` in aten's sdp_utils_cpp.h).
    """
    if query.device.type != "cuda":
        return True
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else query.dtype
    return dtype != torch.float32 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _without_groups(
    module: Any, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Any, Tensor, Tensor]:
    """What transformers takes for an attention whose every query has keys of its own."""
    groups = query.shape[1] // key.shape[1]
    plain = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    return plain, repeat_kv(key, groups), repeat_kv(value, groups)


def _own_part(mask: RowMask | Tensor, first: int, last: int) -> Tensor | None:
    """None where the last token sees the first: a causal mask without a window then."""
    own = slice(first, last)
    if isinstance(mask, RowMask):
        plain = mask.sees_all_before(last - 1, first)
        return None if plain else mask.part(own, own)[None, None]
    if mask.dtype == torch.bool and bool(mask[..., last - 1, own].all()):
        return None
    return mask[..., own, own]


def prepare(
    base: Any, parts: LabelHead, autocast: Callable[[], AbstractContextManager[object]]
) -> None:
    """Let ``base`` compute packed samples, or leave it as it was and raise Unfit.

    Where transformers would attend by SDPA, the first of these that is proven: kernels for
    samples of several lengths, sample by sample without a mask, sample by sample with one.
    """
    before = getattr(base.config, "_attn_implementation", None)
    if before != "sdpa":
        _require_packing(base, parts, autocast)
        return
    for name, mask in MASKS.items():
        AttentionInterface.register(name, segment_attention)
        AttentionMaskInterface.register(name, mask)
    refusal = Unfit("it knows no attention that keeps samples apart")
    for name in (*varlen_kernels(base), *MASKS):
        try:
            with refusing(f"its attention cannot be {name}"):
                base.set_attn_implementation(name)
            _require_packing(base, parts, autocast)
        except Unfit as reason:
            refusal = reason
            base.set_attn_implementation(before)
        else:
            return
    raise refusal


def varlen_kernels(base: Any) -> tuple[str, ...]:
    """Transformers' names of the installed kernels that take samples of several lengths at once.

    flash-attn's, on CUDA; never one that would have to be downloaded.
    """
    on_cuda = base.get_input_embeddings().weight.device.type == "cuda"
    return ("flash_attention_2",) if on_cuda and is_flash_attn_2_available() else ()


def _require_packing(
    base: Any, parts: LabelHead, autocast: Callable[[], AbstractContextManager[object]]
) -> None:
    with (
        refusing("its decoder takes no packed samples"),
        evaluating(base), torch.no_grad(), autocast(),
    ):  # fmt: skip
        _require_isolation(base, parts)


def _require_isolation(base: Any, parts: LabelHead) -> None:
    """Raise Unfit where a sample changes with another, or with being packed."""
    known = inspect.signature(parts.decoder.forward).parameters
    takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    if "position_ids" not in known or not takes_more:
        raise Unfit("its decoder takes no positions")
    ids, mask = two_samples(base)
    others = ids.clone()
    others[0] = ids[0].roll(1)
    packed = packed_states(parts.decoder, ids, mask)
    beside_others = packed_states(parts.decoder, others, mask)
    second = slice(LENGTHS[0], None)
    kept, beside = packed[second], beside_others[second]
    allowed = 0.0 if ids.device.type == "cpu" else APART
    if not torch.equal(kept, beside) and not _off(beside, kept) <= allowed:
        raise Unfit("its packed samples see each other")
    off = _off(packed, parts.hidden_states(ids, mask)[mask.bool()])
    if not off < CLOSE:
        raise Unfit(f"its packed samples differ from padded ones by {off:.1%}")


def _off(states: Tensor, expected: Tensor) -> float:
    return float((states - expected).float().norm() / expected.float().norm())


def two_samples(base: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask of two samples of random tokens, padded on the right: (2, longest)."""
    embeddings = base.get_input_embeddings().weight
    drawn = torch.Generator().manual_seed(1)
    ids = torch.randint(embeddings.shape[0], (2, max(LENGTHS)), generator=drawn)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    return ids.to(embeddings.device), mask.long().to(embeddings.device)
