"""``qlora-core detect``: what is this model, and what should be trained in it?"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from qlora_core.cli.common import (
    add_model_flags,
    add_plugin_flags,
    printable,
    registry_from,
)
from qlora_core.errors import BadInput

if TYPE_CHECKING:
    from qlora_core.registry.detection import Detection


def add(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "detect",
        help="find a model's family, target modules, tokenizer facts and prompt format",
        description="Reads config.json (and tokenizer settings): no weights, no remote code, "
        "no network unless a Hub id is given.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a config.json, or a Hub id")
    parser.add_argument(
        "--targets",
        default="all",
        metavar="SCOPE",
        help="attention, all, all,experts, layer names, or a regular expression (default: all)",
    )
    parser.add_argument(
        "--rank", type=int, default=16, help="for the parameter count (default: 16)"
    )
    parser.add_argument(
        "--build", action="store_true", help="build the skeleton: coverage and memory"
    )
    parser.add_argument(
        "--tokens", type=int, default=2048, metavar="N",
        help="tokens per micro-batch (batch size times length) of the memory table (default: 2048)",
    )  # fmt: skip
    parser.add_argument(
        "--device", metavar="DEVICE",
        help="of the memory table: cpu or cuda, there or not (default: where training would run)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the stable machine-readable contract")
    parser.add_argument(
        "--explain", action="store_true", help="every family's verdict with its reason"
    )
    parser.add_argument("--for", dest="snippet", choices=("peft", "trl"), help="print code for it")
    add_model_flags(parser)
    add_plugin_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the detection in the form that was asked for."""
    if arguments.json and arguments.snippet:
        raise BadInput("--json and --for are two forms of one answer", "leave one out")
    if arguments.tokens < 1:
        raise BadInput(f"--tokens {arguments.tokens}: a step has at least one", "2048 is usual")
    from qlora_core.registry.detect import detect

    detection = detect(
        arguments.model,
        architecture=arguments.architecture,
        targets=arguments.targets,
        registry=registry_from(arguments),
        revision=arguments.revision,
        offline=arguments.offline,
    )
    memory = ""
    if arguments.build:
        from qlora_core.models.coverage import with_structure

        detection = with_structure(detection, rank=arguments.rank)
        memory = _memory(detection, arguments)
    if arguments.json:
        print(json.dumps(detection.to_dict(), indent=2, ensure_ascii=False))
    elif arguments.snippet:
        from qlora_core.cli.snippets import snippet

        print(snippet(detection, arguments.snippet, arguments.rank))
    else:
        print(printable("\n".join(_lines(detection, explain=arguments.explain))))
        if memory:
            print(memory)
    return 0


def _memory(detection: Detection, arguments: argparse.Namespace) -> str:
    """The table for the device that was asked for, else for that on which training would run."""
    import torch

    from qlora_core.models.devices import choose_compute_dtype, choose_device
    from qlora_core.models.memory import plan_memory

    wanted = arguments.device
    if wanted not in (None, "cpu", "cuda"):
        raise BadInput(f"there is no memory table for {wanted!r}", "--device cpu, or cuda")
    try:
        device = torch.device(wanted) if wanted else choose_device()
    except BadInput:  # a GPU that this torch cannot use: training will ask for another torch
        device = torch.device("cuda")
    dtype = torch.bfloat16 if device.type == "cuda" else choose_compute_dtype(device)
    plan = plan_memory(
        detection, rank=arguments.rank, tokens=arguments.tokens, device=device.type,
        compute_dtype=dtype,
    )  # fmt: skip
    kind = str(dtype).removeprefix("torch.")
    title = f"{arguments.tokens:,} tokens, rank {arguments.rank}, {device.type}, {kind}"
    return f"\nmemory of one training step, {title}\n{plan.table()}"


def _lines(detection: Detection, *, explain: bool) -> list[str]:
    targets, tokenizer, prompt = detection.targets, detection.tokenizer, detection.prompt_format
    layers = targets.layers
    shown = layers if isinstance(layers, str) else " ".join(layers)
    turn_end = repr(tokenizer["turn_end"]) if tokenizer["turn_end"] else "the EOS token"
    rows = [
        ("model", detection.model),
        ("architecture", f"{detection.architecture.name}  ({detection.reason})"),
        ("provided by", f"{detection.provided_by} {detection.version}"),
        (f"targets ({targets.scope})", shown or "(none)"),
        ("  as parameters", " ".join(targets.target_parameters)),
        ("  never below", targets.exclude_modules or ""),
        ("stays 16-bit", " ".join(targets.keep_unquantized)),
        ("pad, BOS", f"{_quoted(tokenizer['pad'])}, {_quoted(tokenizer['bos'])}"),
        ("turn ends with", f"{turn_end}  (from {tokenizer['source']})"),
        ("prompt format", f"{prompt['name']}  (from {prompt['source']})"),
        *_coverage_rows(detection),
    ]  # fmt: skip
    lines = [f"{name:<17} {value}" for name, value in rows if value]
    for notice in detection.warnings:
        lines += [f"warning [{notice.code}] {notice.message}", f"  -> {notice.remedy}"]
    if explain:
        wide = max((len(v.name) for v in detection.verdicts), default=0)
        lines += ["", "verdicts"]
        lines += [
            f"  {v.fit.name.lower():<11}{v.name:<{wide}}  {v.reason}" for v in detection.verdicts
        ]
    return lines


def _coverage_rows(detection: Detection) -> list[tuple[str, str]]:
    coverage, trainable = detection.coverage, detection.trainable_parameters
    if coverage is None or trainable is None:
        return []
    from qlora_core.models.quantization_report import binary_size

    weights, layers = coverage["weights"], coverage["layers"]
    reach = f"{weights:.1%} of the decoder's weights, {layers:.0%} of its layers"
    count, rank = trainable["count"], trainable["rank"]
    return [
        ("adapters reach", reach),
        ("stays unquantized", binary_size(coverage["unquantized_bytes"])),
        ("trainable", f"{count:,} parameters at rank {rank} ({trainable['fraction']:.2%})"),
    ]


def _quoted(token: str | None) -> str:
    return "none" if token is None else repr(token)
