"""A long conversation as several shorter ones, none of which begins amid an exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from qlora_core.data.conform import Message
from qlora_core.data.encode import Encoded


def split_conversation(
    messages: Sequence[Message], encode: Callable[[list[Message]], Encoded]
) -> list[Encoded]:
    """As few samples as hold all exchanges of ``messages``, in order.

    An exchange is what the user says and all that follows up to the user's next words. Each
    sample begins with the system text of the conversation. An exchange that is too long by
    itself is a sample by itself: ``encode`` cuts it, or says that it does not fit.
    """
    system = list(takewhile(lambda message: message["role"] == "system", messages))
    samples: list[Encoded] = []
    held: list[Message] = []
    for exchange in _exchanges(messages[len(system) :]):
        sample = encode([*system, *held, *exchange])
        if held and (sample.truncated or not sample.fits):
            held = []
            sample = encode([*system, *exchange])
        elif held:
            samples.pop()
        samples.append(sample)
        held += exchange
    return samples


def _exchanges(messages: Sequence[Message]) -> list[list[Message]]:
    exchanges: list[list[Message]] = []
    answered = True
    for message in messages:
        if (answered and message["role"] in ("user", "system")) or not exchanges:
            exchanges.append([])
            answered = False
        exchanges[-1].append(message)
        answered = answered or message["role"] == "assistant"
    return exchanges
