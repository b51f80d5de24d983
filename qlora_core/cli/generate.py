"""``qlora-core generate``: ask a base model, a base with adapter, or a merged model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from qlora_core.cli.common import add_model_flags, add_plugin_flags, add_trust_flag, registry_from
from qlora_core.errors import BadInput

if TYPE_CHECKING:
    from qlora_core.models.generation import Generated


def add(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "generate",
        help="ask a base model, a base with adapter, or a merged model",
        description="The prompt is asked as a user's message in the model's chat format, or, with "
        "--raw, continued as plain text. Without --prompt it is read from standard input.",
    )
    parser.add_argument("--model", metavar="MODEL", help="default: the base of --adapter")
    parser.add_argument("--adapter", metavar="DIR", help="folder of a run or an adapter")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help="one prompt, one answer")
    what.add_argument("--chat", action="store_true", help="a conversation; /exit ends it")
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument("--raw", action="store_true", help="continue the text as it stands")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T",
        help="0 takes the likeliest token each time (default)",
    )  # fmt: skip
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--seed", type=int, help="for --temperature above 0")
    parser.add_argument(
        "--quantize", choices=("nf4", "fp4", "none"),
        help="default: as the adapter was trained; nf4 for a model without adapter",
    )  # fmt: skip
    parser.add_argument("--device", help="default: the accelerator, else the CPU")
    add_trust_flag(parser)
    add_model_flags(parser)
    add_plugin_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer one prompt, or converse."""
    if arguments.model is None and arguments.adapter is None:
        raise BadInput("no model was named", "give --model, or --adapter with a run's folder")
    if arguments.chat and arguments.raw:
        raise BadInput("--raw continues plain text, a chat has messages", "leave one of them out")
    prompt = None if arguments.chat else _prompt(arguments)
    speaker = _Speaker(arguments)
    if prompt is None:
        return speaker.converse()
    answer = speaker.answer(prompt if arguments.raw else speaker.opening(prompt))
    print(answer.text)
    _say_cut(answer, arguments)
    return 0


def _prompt(arguments: argparse.Namespace) -> str:
    """``--prompt``, else all of standard input."""
    if arguments.prompt is not None:
        return str(arguments.prompt)
    if sys.stdin.isatty():
        raise BadInput("no prompt was given", "use --prompt TEXT or --chat, or pipe a text in")
    text = sys.stdin.read().rstrip("\n")
    if not text:
        raise BadInput("standard input is empty", "use --prompt TEXT, or pipe a text in")
    return text


class _Speaker:
    """The loaded model and how to ask it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from qlora_core.models.trained import load_for_use

        self.arguments = arguments
        self.model, self.tokenizer, self.architecture = load_for_use(
            arguments.model,
            adapter=arguments.adapter,
            quantize=arguments.quantize,
            device=arguments.device,
            architecture=arguments.architecture,
            revision=arguments.revision,
            offline=arguments.offline,
            trust_remote_code=arguments.trust_remote_code,
            registry=registry_from(arguments),
        )

    def opening(self, prompt: str) -> list[dict[str, str]]:
        """The messages of a conversation that begins with ``prompt``."""
        system = self.arguments.system
        begin = [{"role": "system", "content": system}] if system else []
        return [*begin, {"role": "user", "content": prompt}]

    def answer(self, prompt: Any, *, streamer: Any = None) -> Generated:
        from qlora_core.models.generation import generate

        return generate(
            self.model,
            self.tokenizer,
            prompt,
            max_new_tokens=self.arguments.max_new_tokens,
            temperature=self.arguments.temperature,
            top_p=self.arguments.top_p,
            seed=self.arguments.seed,
            policy=self.architecture.tokenizer,
            streamer=streamer,
        )

    def converse(self) -> int:
        """Read lines and answer each, with all turns before it, until /exit or the end."""
        from transformers import TextStreamer

        print("/exit or the end of input ends the conversation", file=sys.stderr)
        history: list[dict[str, str]] = []
        while (line := _line()) is not None:
            turns = self.opening(line)
            history += turns[-1:] if history else turns
            streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
            answer = self.answer(history, streamer=streamer)
            _say_cut(answer, self.arguments)
            history.append({"role": "assistant", "content": answer.text})
        return 0


def _line() -> str | None:
    """The next line that is not empty, None at the end of input and for /exit."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        if line == "/exit":
            return None
        if line:
            return line


def _say_cut(answer: Generated, arguments: argparse.Namespace) -> None:
    if not answer.stopped:
        limit = arguments.max_new_tokens
        print(f"(cut at {limit} tokens; --max-new-tokens sets the limit)", file=sys.stderr)
