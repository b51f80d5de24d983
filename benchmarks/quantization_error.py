"""How much NF4, FP4 and Int4 lose on real weights, and how many bits a parameter takes.

python benchmarks/quantization_error.py [MODEL] [--output results/quantization_error.json]

The error is the root mean square of (dequantized - original) over that of the original, per
matrix of the decoder, weighted by size; blocks of 64 as in the QLoRA paper (arXiv:2305.14314).
FP4 and NF4 are bitsandbytes' own; Int4 is symmetric absmax rounding to -7..7 in the same blocks.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import qlora_base
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file

BLOCK = 64


def int4(weight: torch.Tensor) -> torch.Tensor:
    """Blockwise symmetric rounding to the 15 integers -7..7."""
    blocks = weight.flatten().view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 7
    return ((blocks / scale).round().clamp(-7, 7) * scale).view_as(weight)


def four_bit(weight: torch.Tensor, kind: str, nested: bool) -> tuple[torch.Tensor, float]:
    """(dequantized, bits per parameter) by bitsandbytes."""
    packed, state = quantize_4bit(
        weight, blocksize=BLOCK, quant_type=kind, compress_statistics=nested
    )
    parts = [packed, state.absmax, *([state.state2.absmax] if nested else [])]
    stored = sum(part.numel() * part.element_size() for part in parts)
    return dequantize_4bit(packed, state), 8 * stored / weight.numel()


def relative_error(original: torch.Tensor, back: torch.Tensor) -> float:
    return ((back - original).square().mean() / original.square().mean()).sqrt().item()


def measure(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    sizes = [w.numel() for w in weights.values()]
    for name in ("nf4", "nf4 + double quantization", "fp4", "fp4 + double quantization", "int4"):
        errors, bits = [], []
        for weight in weights.values():
            if name == "int4":
                back, width = int4(weight), 4 + 32 / BLOCK
            else:
                back, width = four_bit(weight, name[:3], "double" in name)
            errors.append(relative_error(weight, back))
            bits.append(width)
        squares = sum(e * e * s for e, s in zip(errors, sizes, strict=True)) / sum(sizes)
        rows[name] = {
            "relative_error": math.sqrt(squares),
            "median_of_matrices": statistics.median(errors),
            "bits_per_parameter": sum(b * s for b, s in zip(bits, sizes, strict=True)) / sum(sizes),
        }
    return rows


def decoder_matrices(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return {
        name: weight.float()
        for name, weight in weights.items()
        if weight.ndim == 2 and ".layers." in name and weight.numel() % BLOCK == 0
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=qlora_base.MODEL)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    weights = decoder_matrices(arguments.model)
    rows = {"trained weights": measure(weights)}
    generator = torch.Generator().manual_seed(0)
    normal = {f"{i}": torch.randn(1024, 1024, generator=generator) for i in range(4)}
    rows["standard normal"] = measure(normal)
    for where, table in rows.items():
        print(f"\n{where:<28}{'relative error':>16}{'bits/parameter':>16}")
        for name, row in table.items():
            print(f"{name:<28}{row['relative_error']:>16.4f}{row['bits_per_parameter']:>16.4f}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
