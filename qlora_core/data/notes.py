"""What may be done to a conversation on its way to tokens: one code for each, and its meaning."""

from __future__ import annotations

SYSTEM_MERGED = "system-merged"
TRIMMED = "trimmed"
COMPARED = "found-by-comparison"
EMPTY = "empty-answer"
CALLS_DROPPED = "tool-calls-dropped"
BESIDE_DROPPED = "text-beside-calls-dropped"
TOOLS_DROPPED = "tools-dropped"
RESULTS_DROPPED = "tool-results-dropped"
REASONING_DROPPED = "reasoning-dropped"
END_APPENDED = "end-of-turn-appended"
NO_END = "no-end-of-turn-token"
CLOCK_FROZEN = "clock-frozen"
NEUTRALISED = "injection-neutralised"
IN_ANSWER = "control-token-in-answer-neutralised"
READ = "control-token-read-by-template"
TRUNCATED = "truncated"
NO_FIT = "answer-does-not-fit"

MEANINGS = {
    SYSTEM_MERGED: "the template has no place for the system text: put before the user's",
    TRIMMED: "the template trims white space around texts",
    COMPARED: "the template rewrites the turn: its answer was found by comparing renderings",
    EMPTY: "an assistant turn says nothing: nothing of it is learned",
    CALLS_DROPPED: "the template leaves tool calls out, or some of them, or puts them "
    "before the text beside them: those are not learned",
    BESIDE_DROPPED: "the template leaves the text beside tool calls out: it is not learned",
    TOOLS_DROPPED: "the template leaves tools out: the model does not see them",
    RESULTS_DROPPED: "the template leaves results of tools out: the model does not see them",
    REASONING_DROPPED: "the template leaves the reasoning of a turn out: it is not learned",
    END_APPENDED: "the template ends no turn: an end-of-turn token was appended",
    NO_END: "no end-of-turn token exists: the model learns no end (set eos_token)",
    CLOCK_FROZEN: "the template prints today's date: a fixed one was used",
    NEUTRALISED: "control tokens spelt out in the data were kept as plain text",
    IN_ANSWER: "control tokens spelt out in an answer were kept as plain text "
    "(trusted_roles = assistant lets the model learn to write them)",
    READ: "control tokens in the data that the template itself acts on were left to it",
    TRUNCATED: "the start of the prompt was cut",
    NO_FIT: "the answer is longer than the maximum length",
}


def explain(code: str) -> str:
    """The meaning of a code, for reports; anything else is returned as it is."""
    return MEANINGS.get(code, code)
