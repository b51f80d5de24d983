"""The command line: one subcommand per module of this package, errors in one line, exit codes.

0 done, 1 the answer is no or a training had to stop, 2 wrong usage or bad input, 130 interrupted
(143 by SIGTERM).
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from qlora_core import ENGINE_PACKAGES, __version__
from qlora_core.cli import demo, detect, generate, merge, plugins, quantize, train, verify
from qlora_core.cli.common import printable
from qlora_core.errors import MissingEngine, QloraError

COMMANDS = (detect, train, generate, merge, verify, quantize, plugins, demo)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments without a page of usage in front of it.

    Flags are spelt out: ``--learning-rat`` is an unknown flag, not a guess.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})
        self.fill: Callable[[argparse.ArgumentParser], None] | None = None
        """Adds flags that cost time to make, once this command is the one that is asked for."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """An unknown flag is named by the command that does not know it, with the nearest one."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            from difflib import get_close_matches

            flag = unknown[0].partition("=")[0]
            close = get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.7)
            if not flag.startswith("-"):
                folders = [f for f in ("--adapter", "--model") if f in self._option_string_actions]
                close = [f"{name} {flag}" for name in folders]
            self.error(
                f"unknown argument {flag}"
                + (f", did you mean {' or '.join(close)}?" if close else "")
            )
        return known, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n  -> see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line as a parser; imports nothing heavy."""
    top = _Parser(
        prog="qlora-core",
        description="QLoRA fine-tuning that knows your architecture.",
        epilog="Start with: qlora-core demo, or qlora-core detect MODEL",
    )
    top.add_argument("--version", action="version", version=f"qlora-core {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never shows a traceback for bad input."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    _no_noise()
    _set_environment()
    _survive_any_text()
    namespace = parser().parse_args(arguments)
    try:
        return int(namespace.run(namespace))
    except QloraError as error:
        return _refuse(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ENGINE_PACKAGES:
            return _refuse(MissingEngine(error.name or "torch"))
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _refuse(error: QloraError) -> int:
    print(printable(f"qlora-core: error: {error}"), file=sys.stderr)
    return error.exit_code


def _no_noise() -> None:
    """Hide what libraries say to each other's developers: no user can act on it."""
    # It suggests a package that fetches kernels from the network; we never use that path.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="bitsandbytes")
    # PEFT asks transformers in the old way.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", category=FutureWarning)


def _set_environment() -> None:
    """What libraries read when they load, unless the user has set it."""
    # Idle OpenMP threads sleep: on a shared machine spinning ones cost 2.5x wall time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Not at once, though: some 30 microseconds bridge what lies between two small products. On a
    # quiet machine that saves a quarter of the wall time, on a busy one it costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _survive_any_text() -> None:
    """A name that the terminal's encoding lacks is shown escaped, as standard error does it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
