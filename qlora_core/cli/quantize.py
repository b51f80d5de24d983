"""``qlora-core quantize``: a base model in 4 bits on disk, opened in seconds later."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qlora_core.cli.common import add_model_flags, add_plugin_flags, add_trust_flag, registry_from


def add(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "quantize",
        help="write a base model in 4 bits, to open it in seconds later",
        description="Quantizes as `train` does, writes transformers' own 4-bit format, opens it "
        "again and compares. `train --model DIR` and plain transformers take the folder.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder in 16 bits, or a Hub id")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--type", choices=("nf4", "fp4"), default="nf4", dest="quant_type")
    parser.add_argument(
        "--double-quantization", action=argparse.BooleanOptionalAction, default=True,
        help="quantize the quantization constants as well (default: true)",
    )  # fmt: skip
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not open it again and compare"
    )
    parser.add_argument("--device", help="default: the accelerator, else the CPU")
    add_trust_flag(parser)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    add_model_flags(parser)
    add_plugin_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Quantize and print what was written."""
    from qlora_core.models.store import quantize

    report = quantize(
        arguments.model,
        arguments.output,
        quant_type=arguments.quant_type,
        double_quantization=arguments.double_quantization,
        check=arguments.check,
        architecture=arguments.architecture,
        device=arguments.device,
        revision=arguments.revision,
        offline=arguments.offline,
        trust_remote_code=arguments.trust_remote_code,
        registry=registry_from(arguments),
    )
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else "\n".join(report.lines()))
    return 0
