"""Flags that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_core.registry.manager import Registry


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it may be fetched."""
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--offline", action="store_true", help="never touch the network")
    parser.add_argument("--architecture", metavar="NAME", help="take this family, whatever fits")


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """Which code of a model's own may run."""
    parser.add_argument(
        "--trust-remote-code", metavar="SHA256",
        help="run the Python code that the model's folder brings, if this is its hash",
    )  # fmt: skip


def add_plugin_flags(parser: argparse.ArgumentParser) -> None:
    """Which plugins take part."""
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="also load this plugin file"
    )
    parser.add_argument(
        "--block", action="append", default=[], metavar="NAME", help="switch this plugin off"
    )


def registry_from(arguments: argparse.Namespace) -> Registry:
    """The registry that the plugin flags ask for."""
    from qlora_core.registry.manager import Registry

    return Registry.from_environment(files=arguments.plugin, block=arguments.block)


def printable(text: str) -> str:
    """``text`` for a terminal: what strangers' files say may hold its control sequences."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )
