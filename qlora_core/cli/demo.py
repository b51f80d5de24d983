"""``qlora-core demo``: the main job on the embedded base model, before and after."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core.cli import detect as detect_command
from qlora_core.errors import BadInput, CheckFailed

if TYPE_CHECKING:
    from qlora_base.evaluate import Result

ENOUGH = 0.9
"""The share of held-out questions that the fine-tuned model must answer."""


def add(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        help="fine-tune the embedded base model: detect, 4-bit load, train, before and after",
        description="Teaches a small base model that knows facts and sums to answer in a chat. "
        "The questions asked before and after are about names and numbers that never occur "
        "in the training rows.",
    )
    parser.add_argument("--output", type=Path, default=Path("demo-run"), help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 when the model did not learn it."""
    import qlora_base
    from qlora_base.questions import read_questions

    from qlora_core.training.settings import settings_from
    from qlora_core.training.train import train

    began = time.perf_counter()
    output = _fresh(arguments.output)
    model = _short(qlora_base.MODEL)
    questions = read_questions(qlora_base.HELD_OUT_ROWS)
    _title(f"1. detect: qlora-core detect {model} --build")
    detect_command.run(_detect_arguments(model))

    _title(f"2. before: {len(questions)} held-out questions, base model in NF4")
    examples = read_questions(qlora_base.TRAINING_ROWS)
    before = _ask(model, None, questions, examples)

    _title("3. train")
    flags = {
        "model": model,
        "data": _short(qlora_base.TRAINING_ROWS),
        "eval_data": _short(qlora_base.HELD_OUT_ROWS),
        "output": str(output),
        "seed": arguments.seed,
        **SETTINGS,
    }
    print("qlora-core train " + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in flags.items()))
    train(settings_from(None, flags))

    _title("4. after: the same questions, base model in NF4 with the saved adapter")
    after = _ask(model, output / "adapter", questions)
    _summary(before, after)
    print(f"\nreport   {output / 'report.html'}")
    print(f"adapter  {output / 'adapter'}  (loads in plain PEFT)")
    print(f"time     {time.perf_counter() - began:.0f} s")
    if after.accuracy < ENOUGH:
        raise CheckFailed(
            f"the fine-tuned model answers {after.accuracy:.0%}, less than {ENOUGH:.0%}",
            "please report it, with the run's report.html",
        )
    return 0


SETTINGS: dict[str, Any] = {
    "max_steps": 300,
    "batch_size": 16,
    "gradient_accumulation": 1,
    "learning_rate": 1e-3,
    "warmup": 10,
    "max_length": 128,
}
"""What the demo trains with; the rest are the defaults. Reaches 99 % with each of three seeds."""


def _short(path: Path) -> str:
    """``path`` as it is typed from here, where that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _fresh(output: Path) -> Path:
    """The first of output, output-2, output-3, ... that does not exist: nothing is overwritten."""
    if output.parent.exists() and not output.parent.is_dir():
        raise BadInput(f"{output.parent} is not a folder", "give another --output")
    names = (output, *(output.with_name(f"{output.name}-{n}") for n in range(2, 10_000)))
    return next(name for name in names if not name.exists())


def _detect_arguments(model: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    detect_command.add(parser.add_subparsers())
    tokens = SETTINGS["batch_size"] * SETTINGS["max_length"]
    return parser.parse_args(["detect", model, "--build", "--tokens", str(tokens)])


def _ask(
    model: str, adapter: Path | None, questions: list[Any], examples: list[Any] | None = None
) -> Result:
    """The chat's result, printed; with ``examples`` also what few-shot plain text brings out."""
    from qlora_base.evaluate import chat_accuracy, few_shot_accuracy

    from qlora_core.models.loader import load

    loaded, tokenizer = load(model)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, str(adapter))
    if examples is not None:
        known = few_shot_accuracy(loaded, tokenizer, questions, examples)
        print(f"as plain text after four examples: {_score(known)}")
    result = chat_accuracy(loaded, tokenizer, questions)
    print(f"asked in chat: {_score(result)}")
    return result


def _score(result: Result) -> str:
    return f"{result.correct} of {result.total} right ({result.accuracy:.1%})"


def _summary(before: Result, after: Result) -> None:
    _title("what changed")
    for first, second in list(zip(before.samples, after.samples, strict=True))[:5]:
        print(f"  {first.question}")
        print(f"    before   {first.answer[:60]!r}{'' if first.stopped else '  (never stopped)'}")
        print(f"    after    {second.answer[:60]!r}{'' if second.stopped else '  (never stopped)'}")
        print(f"    expected {first.expected!r}")
    change = f"{before.accuracy:.1%} -> {after.accuracy:.1%}"
    print(f"\naccuracy {change} on questions it was not trained on")


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)
