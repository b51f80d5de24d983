"""How exact gradients are: the fast road and plain PEFT, each against float32.

python -m benchmarks.exactness [--batches 8] [--only llama,phi] [--output results/exactness.json]

Random models of a dozen shapes in NF4, adapters that are nowhere zero, batches of samples of
ragged lengths. The reference computes in float32 with the very 4-bit weights; plain PEFT and
ours compute in bfloat16. An error is the distance of the whole gradient (all adapters as one
vector) from the reference's, relative to it; a ratio is the sum of ours over the sum of plain's.
Plain is the model's own forward and PEFT's layers on padded batches; with dropout, whose masks
depend on the layout, it and the reference take packed rows through the model's own layers.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.measuring import surroundings, write
from qlora_core.kernels import packing
from qlora_core.kernels.head_probe import Unfit, find_head
from qlora_core.models.adapters import attach
from qlora_core.models.loader import load_model
from qlora_core.training.losses import IGNORED, Loss, summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.roads import choose_road, packed_loss
from qlora_core.training.runs import Run, new_record

VOCABULARY, LONGEST = 2048, 64
SHAPE = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HEADS = {**SHAPE, "head_dim": 32}
GPT2 = {
    "n_embd": 256, "n_layer": 4, "n_head": 8, "vocab_size": VOCABULARY, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "llama with biases": {**SHAPE, "attention_bias": True, "mlp_bias": True},
    "mistral": {**SHAPE, "sliding_window": 16},
    "qwen2": SHAPE,
    "qwen3": HEADS,
    "gemma2": {**HEADS, "sliding_window": 16},
    "gemma3_text": {**HEADS, "sliding_window": 16},
    "phi3": SHAPE,
    "phi": SHAPE,
    "falcon": {**SHAPE, "multi_query": True},
    "gpt_neox": SHAPE,
    "gpt2": GPT2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "rslora": {"rslora": True}, "dropout": {"dropout": 0.1},
}  # fmt: skip
BFLOAT16 = Precision(torch.device("cpu"), torch.bfloat16)
BAR = 1.2


def ragged(seed: int) -> dict[str, Tensor]:
    """Five samples, padded on the right, half of their tokens learned."""
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (5, LONGEST), generator=drawn)
    lengths = torch.randint(8, LONGEST + 1, (5, 1), generator=drawn)
    lengths[0] = LONGEST
    mask = torch.arange(LONGEST)[None] < lengths
    learned = (torch.rand(ids.shape, generator=drawn) < 0.5) & mask
    labels = torch.where(learned, ids, IGNORED)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def model_of(folder: Path, dtype: torch.dtype, **lora: Any) -> Any:
    """The 4-bit base with adapters drawn anew, the same for every dtype."""
    base = load_model(folder, compute_dtype=dtype, device="cpu").model
    model = attach(base, rank=8, **lora).train()
    drawn = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            spread = 0.2 * parameter.shape[-1] ** -0.5
            parameter.data = torch.randn(parameter.shape, generator=drawn) * spread
    return model


def gradient(model: Any, loss: Loss, seed: int, autocast: Callable[[], Any]) -> Tensor:
    torch.manual_seed(seed)  # of dropout
    model.zero_grad()
    with autocast():
        found = loss(model, ragged(seed))
    found.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def packed_by_its_own_layers(model: Any, autocast: Callable[[], Any]) -> Loss:
    """Packed where the model allows it, else padded."""
    parts = find_head(model, autocast)
    try:
        packing.prepare(model.get_base_model(), parts, autocast)
    except Unfit:
        return summed_loss
    return packed_loss(parts)


def compared(folder: Path, batches: int, **lora: Any) -> dict[str, Any]:
    exact, model = (model_of(folder, dtype, **lora) for dtype in (torch.float32, torch.bfloat16))
    plain = reference = summed_loss
    if lora.get("dropout"):
        reference = packed_by_its_own_layers(exact, nullcontext)
        plain = packed_by_its_own_layers(model, BFLOAT16.autocast)
    seeds = range(batches)
    references = [gradient(exact, reference, seed, nullcontext) for seed in seeds]
    theirs = [gradient(model, plain, seed, BFLOAT16.autocast) for seed in seeds]
    run = Run(folder, new_record())
    loss = choose_road(run, model, BFLOAT16, plain=False).loss
    ours = [gradient(model, loss, seed, BFLOAT16.autocast) for seed in seeds]
    errors = [
        [float((a - b).norm() / b.norm()) for a, b in zip(found, references, strict=True)]
        for found in (ours, theirs)
    ]
    road = {k: v for k, v in run.record["fast_path"].items() if k != "memory"}
    return {
        "ours": sum(errors[0]) / batches, "plain": sum(errors[1]) / batches,
        "ratio": sum(errors[0]) / sum(errors[1]),
        "worst batch": max(a / b for a, b in zip(*errors, strict=True)), "road": road,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--only", help="shapes by name, separated by commas")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else SHAPES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            torch.manual_seed(0)
            config = AutoConfig.for_model(name.partition(" ")[0], **SHAPES[name])
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(folder)
            for variant, lora in VARIANTS.items():
                seen = found[f"{name}, {variant}"] = compared(folder, given.batches, **lora)
                verdict = "met" if seen["ratio"] <= BAR else "NOT MET"
                print(
                    f"{name:<20}{variant:<10}ours {seen['ours']:.4f}  plain {seen['plain']:.4f}  "
                    f"ratio {seen['ratio']:.3f} (bar {BAR}: {verdict})  {seen['road']['layers']}",
                    flush=True,
                )
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
    if given.output:
        write(
            given.output,
            {"bar": BAR, "batches": given.batches, "shapes": found, "on": surroundings()},
        )


if __name__ == "__main__":
    main()
