"""Every error a user may meet: what happened, where, and what to do next."""

from __future__ import annotations


class QloraError(Exception):
    """The base of all errors raised on purpose.

    ``problem`` says what is wrong and where, ``remedy`` what to do next.
    The command line prints both and exits with ``exit_code``.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n  -> {remedy}")
        self.problem = problem
        self.remedy = remedy


class BadInput(QloraError):
    """A file, a setting or a name that cannot be used as it is."""


class MissingEngine(BadInput, ImportError):
    """Something that needs torch and friends was asked of a base install."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"this needs the training engine, and {missing} is not installed",
            'pip install "qlora-core[train]"',
        )


class DetectionError(QloraError):
    """No single architecture fits the model."""


class PluginError(QloraError):
    """A plugin broke a promise; the message names the plugin."""


class CheckFailed(QloraError):
    """The answer is no: a check that was asked for, or that we owe, did not hold."""

    exit_code = 1


class TrainingStopped(QloraError):
    """Training cannot go on; what was reached is saved and the message says where."""

    exit_code = 1


class MemoryRanOut(BaseException):
    """While quantizing; its cause says where.

    No Exception: transformers keeps those of a conversion, goes on, and at the end speaks of
    files that it could not convert.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, MemoryError):
        return True
    text = f"{type(error).__name__} {error}".lower()
    said = ("outofmemory", "out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in text for words in said)


def first_line(error: BaseException) -> str:
    """What ``error`` says, without what follows; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
