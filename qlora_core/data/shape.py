"""The shape of a prompt format: what stands before, between and after the texts of a chat."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from difflib import SequenceMatcher

from qlora_core.data.conform import Message

Render = Callable[[Sequence[Message]], str | None]
"""Messages to text, None where they are refused."""
_BOS, _EOS = "\x02", "\x03"
"""Stand for the tokenizer's own tokens, so that formats compare whatever these are."""
_THOUGHTS = re.compile(r"<think>\s*</think>\s*")


def chat(count: int, *, system: bool = False) -> list[Message]:
    """So many messages of plain words, no word in another; the first may be a system text."""
    words = ("zebra one", "quail two", "otter three", "viper four", "moose five", "finch six")
    turns = [{"role": ("user", "assistant")[n % 2], "content": words[n]} for n in range(count)]
    return [*([{"role": "system", "content": "koala zero"}] if system else []), *turns]


@dataclass(frozen=True)
class Shape:
    """``before`` is written before the first question, ``answer`` before an answer.

    ``question`` stands between an answer and the next question, ``after`` behind the last
    answer. ``system`` is what stands before and after a system text, empty where the format
    takes none or leaves it out.
    """

    before: str
    answer: str
    question: str
    after: str
    system: tuple[str, str] = ("", "")

    def likeness(self, other: Shape) -> tuple[int, float]:
        """0 where turns look different, else more the more alike they are.

        3: the same turns. 2: the same but for white space and BOS. 1: also but for what ends a
        turn. The second number tells alike ones apart, by all of the frame: 1.0 for equal.
        """
        for level, simplify in ((3, _turns), (2, _unspaced), (1, _headers)):
            turns = simplify(self)
            if turns == simplify(other) and any(turns):
                return level, SequenceMatcher(None, self._text(), other._text(), False).ratio()
        return 0, 0.0

    def _text(self) -> str:
        return "\x01".join((*astuple(self)[:4], *self.system))


def shape_of(render: Render, bos: str = "", eos: str = "") -> Shape | None:
    """The shape of what ``render`` makes of chats; None where it rewrites or refuses them.

    ``bos`` and ``eos`` are the tokenizer's tokens, as ``render`` writes them.
    """
    framed = [_named(p, bos, eos) for p in pieces_of(render, chat(4, system=True)) or ()]
    plain = [_named(p, bos, eos) for p in pieces_of(render, chat(4)) or ()] or framed[1:]
    if not plain:
        return None
    before, answer, question, again, after = plain
    if answer != again:  # some close a thought that they left out of earlier turns
        answer, again = (piece.replace("</think>", "") for piece in (answer, again))
    if answer != again:
        return None
    return Shape(before, answer, question, after, (framed[0], framed[1]) if framed else ("", ""))


def pieces_of(render: Render, messages: Sequence[Message]) -> list[str] | None:
    """What stands before, between and after the texts, if they all stand there in order."""
    text = render(messages)
    pieces = []
    for message in messages:
        before, found, text = (text or "").partition(str(message["content"]))
        if not found:
            return None
        pieces.append(before)
    pieces.append(text or "")
    return pieces


def _named(text: str, bos: str, eos: str) -> str:
    for token, name in ((eos, _EOS), (bos, _BOS)):
        text = text.replace(token, name) if token else text
    return _THOUGHTS.sub("", text)


def _turns(shape: Shape) -> tuple[str, ...]:
    return shape.answer, shape.question


def _unspaced(shape: Shape) -> tuple[str, ...]:
    return tuple(re.sub(rf"\s|{_BOS}", "", turn) for turn in _turns(shape))


def _headers(shape: Shape) -> tuple[str, ...]:
    """The turns without the token that ends them, if one does."""
    turns = _unspaced(shape)
    end = re.match(rf"\s*(<[^<>\s]+>|{_EOS})", shape.after)
    if end and turns[1].startswith(end[1]):
        return tuple(turn.replace(end[1], "") for turn in turns)
    return turns
