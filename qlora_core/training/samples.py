"""What the model answers before and after training, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_core.models.generation import continuations
from qlora_core.training.batches import Sample
from qlora_core.training.losses import IGNORED
from qlora_core.training.precision import Precision

LONGEST_PROMPT, LONGEST_ANSWER = 512, 128


class Samples:
    """A few prompts out of the rows, with what the row answers.

    The prompt is everything up to the first learned token, as ids: what is asked here is
    exactly what was, or will be, trained on. Plain text is cut after its first tokens.
    """

    def __init__(self, samples: Sequence[Sample], tokenizer: Any, stops: list[int], count: int):
        usable = [s for s in samples if 0 < _prompt_length(s) <= LONGEST_PROMPT]
        spacing = max(1, len(usable) // max(count, 1))
        self.chosen = usable[::spacing][:count]
        self.tokenizer = tokenizer
        self.stops = stops

    def questions(self) -> list[dict[str, Any]]:
        """``prompt`` and ``expected`` as text; ``before`` and ``after`` still open."""
        asked = []
        for sample in self.chosen:
            cut = _prompt_length(sample)
            prompt, answer = self._text(sample["input_ids"][:cut]), sample["input_ids"][cut:]
            expected = self.tokenizer.decode(answer, skip_special_tokens=True)
            asked.append({"prompt": prompt, "expected": expected, "before": None, "after": None})
        return asked

    def answers(self, model: Any, precision: Precision) -> list[str]:
        """The model's greedy answer to each prompt; its mode is as before afterwards."""
        if not self.chosen:
            return []
        prompts = [sample["input_ids"][: _prompt_length(sample)] for sample in self.chosen]
        answers = [len(s["input_ids"]) - len(p) for s, p in zip(self.chosen, prompts, strict=True)]
        most = min(LONGEST_ANSWER, max(answers) + 16)
        with precision.autocast():
            found = continuations(
                model, self.tokenizer, prompts, max_new_tokens=most, stops=self.stops
            )
        return [answer.text for answer in found]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def _prompt_length(sample: Sample) -> int:
    """Where the first learned token is; in plain text, after a fourth of it."""
    labels = sample["labels"]
    first = next((i for i, label in enumerate(labels) if label != IGNORED), 0)
    return first if first > 1 else len(labels) // 4
