"""Samples as they will be trained on: text, ids and labels, what is learned in colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qlora_core.data.collate import Sample
from qlora_core.data.encode import IGNORED

LEARNED = "bold green"
_PLACES = 8
"""How many changes between learned and not learned the terminal shows."""
_PATIENCE = 8
"""Tokens that may share one character; then it is shown as what it is."""
# Control and direction marks could hide or rewrite what the terminal shows.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= dict.fromkeys(range(0x7F, 0xA0), "\ufffd")
_VISIBLE |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")


class Token(NamedTuple):
    """One token of a sample; ``label`` is -100 where it is not learned."""

    text: str
    id: int
    label: int

    @property
    def learned(self) -> bool:
        """Whether the token carries a label."""
        return self.label != IGNORED


def tokens_of(tokenizer: Any, sample: Sample) -> list[Token]:
    """The tokens of a sample; their texts joined are the decoded text.

    A character that is spread over several tokens stands with the last of them.
    """
    ids = sample["input_ids"]
    texts = _texts(tokenizer, ids)
    return [Token(*row) for row in zip(texts, ids, sample["labels"], strict=True)]


def terminal_preview(
    samples: Sequence[Sample], tokenizer: Any, *, count: int = 3, colour: bool = True
) -> Group:
    """The first samples for a rich console. Without ``colour`` marks show what is learned."""
    parts: list[Any] = []
    for number, sample in enumerate(samples[:count], start=1):
        tokens = tokens_of(tokenizer, sample)
        title = Text(_title(number, sample, tokens), style="bold underline")
        parts += [title, _text(tokens, colour), Text(""), _table(tokens), Text("")]
    return Group(*parts)


def html_preview(
    samples: Sequence[Sample], tokenizer: Any, *, count: int = 20, report: Sequence[str] = ()
) -> str:
    """The first samples, and the lines of ``report``, as a page that needs nothing else."""
    sections = []
    for number, sample in enumerate(samples[:count], start=1):
        tokens = tokens_of(tokenizer, sample)
        body = "".join(map(_token_html, tokens))
        rows = "".join(
            f"<tr{_class(t)}><td>{i}<td>{escape(repr(t.text))}<td>{t.id}<td>{t.label}"
            for i, t in enumerate(tokens)
        )
        title = escape(_title(number, sample, tokens))
        table = f"<tr><th>position<th>token<th>id<th>label{rows}"
        sections.append(
            f"<section><h2>{title}</h2><pre>{body}</pre>"
            f"<details><summary>ids and labels</summary><table>{table}</table></details></section>"
        )
    lines = escape("\n".join(report))
    return _PAGE.format(report=f"<pre>{lines}</pre>" if lines else "", samples="\n".join(sections))


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, decoded with the token before it as context."""
    texts = []
    start = read = 0
    for end in range(1, len(ids) + 1):
        before, now = _decode(tokenizer, ids[start:read]), _decode(tokenizer, ids[start:end])
        waits = now.endswith("\ufffd") and end - read < _PATIENCE and end < len(ids)
        texts.append("" if waits else now[len(before) :])
        if not waits:
            start, read = read, end
    return texts


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def _title(number: int, sample: Sample, tokens: Sequence[Token]) -> str:
    learned = sum(token.learned for token in tokens)
    file, line = sample.get("source", ("", 0))
    place = f" from {file}:{line}" if file else ""
    return f"sample {number}{place}: {len(tokens):,} tokens, {learned:,} learned"


def _text(tokens: Sequence[Token], colour: bool) -> Text:
    text = Text()
    for learned, run in groupby(tokens, key=lambda token: token.learned):
        shown = "".join(token.text for token in run).translate(_VISIBLE)
        if learned and not colour:
            shown = f"[[{shown}]]"
        text.append(shown, style=LEARNED if learned else "dim")
    return text


def _table(tokens: Sequence[Token]) -> Table:
    """Position, token, id and label: the start, and where learning sets in and ends."""
    table = Table("position", "token", "id", "label", box=None, pad_edge=False)
    previous = -1
    for position in _telling(tokens):
        if position > previous + 1:
            table.add_row("...", "", "", "")
        token = tokens[position]
        shown = Text(repr(token.text).translate(_VISIBLE))
        style = LEARNED if token.learned else "dim"
        table.add_row(str(position), shown, str(token.id), str(token.label), style=style)
        previous = position
    if previous < len(tokens) - 1:
        table.add_row("...", "", "", "")
    return table


def _telling(tokens: Sequence[Token]) -> list[int]:
    """Positions around the start, the end, and changes between learned and not learned."""
    places = [i for i in range(1, len(tokens)) if tokens[i].learned != tokens[i - 1].learned]
    places = [0, *places, len(tokens)]
    if len(places) > _PLACES:
        places = [*places[: _PLACES - 3], *places[-3:]]
    return sorted(
        {i for place in places for i in range(place - 3, place + 3)} & {*range(len(tokens))}
    )


def _token_html(token: Token) -> str:
    title = escape(f"id {token.id}, label {token.label}")
    return f'<span{_class(token)} title="{title}">{escape(token.text)}</span>'


def _class(token: Token) -> str:
    return ' class="learned"' if token.learned else ""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What will be trained</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }}
h2 {{ font-size: 1rem; margin: 2rem 0 .5rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; padding: 1rem; border: 1px solid #8886;
      border-radius: 6px; margin: 0; }}
pre span:hover {{ outline: 1px solid currentColor; }}
.learned {{ background: #2ea04340; }}
pre .learned {{ border-bottom: 2px solid #2ea043; }}
table {{ border-collapse: collapse; font: 13px/1.6 ui-monospace, monospace; margin-top: .5rem; }}
td, th {{ padding: 0 .8rem; text-align: right; }}
td:nth-child(2), th:nth-child(2) {{ text-align: left; }}
</style></head><body>
<h1>What will be trained</h1>
<p>Learned tokens are <span class="learned">marked</span>; all others have the label -100.
Point at a token to see its id.</p>
{report}
{samples}
</body></html>
"""
