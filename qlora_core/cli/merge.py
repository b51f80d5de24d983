"""``qlora-core merge``: one 16-bit model without adapter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qlora_core.cli.common import add_model_flags, add_plugin_flags, add_trust_flag, registry_from


def add(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "merge",
        help="write base and adapter as one 16-bit model",
        description="Adds the adapter to the dequantized 4-bit base that it was trained on, shard "
        "by shard, and compares the result with base and adapter before it is kept.",
    )
    parser.add_argument("adapter", metavar="RUN_OR_ADAPTER", help="folder of a run or an adapter")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--base", metavar="MODEL", help="default: as the run recorded it")
    parser.add_argument(
        "--onto", choices=("nf4", "original"), default="nf4",
        help="nf4: the dequantized base that was trained on (default); original: the 16-bit base, "
        "which the adapter has never seen",
    )  # fmt: skip
    parser.add_argument(
        "--no-check", dest="check", action="store_false",
        help="do not load the 16-bit model for comparison (it must fit into memory)",
    )  # fmt: skip
    parser.add_argument("--device", help="default: the accelerator, else the CPU")
    add_trust_flag(parser)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    add_model_flags(parser)
    add_plugin_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Merge and print what was measured."""
    from qlora_core.models.merge import merge

    report = merge(
        arguments.adapter,
        arguments.output,
        base=arguments.base,
        onto=arguments.onto,
        check=arguments.check,
        architecture=arguments.architecture,
        device=arguments.device,
        revision=arguments.revision,
        offline=arguments.offline,
        trust_remote_code=arguments.trust_remote_code,
        registry=registry_from(arguments),
    )
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print("\n".join(report.lines()))
    return 0
