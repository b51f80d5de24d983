"""``qlora-core verify``: does the saved folder still say what was trained?"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "verify",
        help="compare what a saved folder renders with what was trained",
        description="Renders and tokenizes golden conversations with the saved tokenizer and "
        "template, and compares them with what training recorded. Exits with 1 and the first "
        "difference. Then it makes the prompts as transformers, vLLM, llama.cpp and Ollama do, and "
        "warns where one sends something else.",
    )
    parser.add_argument(
        "folder", metavar="RUN", help="folder of a run, its adapter, or a merged model"
    )
    parser.add_argument(
        "--modelfile",
        action="store_true",
        help="print an Ollama Modelfile: the template in Go's language, and the stops",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; 1 when something differs."""
    from qlora_core.data.verify import modelfile, verify

    result = verify(arguments.folder)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if result.difference is not None:
        print(f"not what was trained: {result.difference}", file=sys.stderr)
        return 1
    if arguments.modelfile:
        print(modelfile(arguments.folder), end="")
    else:
        print(f"what is served is what was trained ({len(result.checks)} comparisons)")
        print(f"  compared: {result.summary()}")
    return 0
