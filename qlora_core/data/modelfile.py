"""A chat template as Ollama wants it: in Go's template language, and only where that is exact."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from qlora_core.data.go import render_go
from qlora_core.data.shape import Render, chat, pieces_of
from qlora_core.data.spans import shared_start
from qlora_core.errors import BadInput

REMEDY = (
    "serve a GGUF file with llama.cpp (it holds the chat template itself), or the folder with vLLM"
)
_TEMPLATE = re.compile(r'^TEMPLATE """(.*?)"""$', re.DOTALL | re.MULTILINE)
_STOP = re.compile(r"^PARAMETER stop (.+)$", re.MULTILINE)


def write_modelfile(render: Render, prompt: Render, *, bos: str, stops: Sequence[str]) -> str:
    """A Modelfile whose template renders as ``render`` does, and ``prompt`` before an answer.

    ``bos`` is the token that the server writes first by itself, if it does, so that the
    template must not. The file is for conversations of an optional system text, then user and
    assistant in turn. Raises BadInput where Go cannot say what the template does.
    """
    body = _go_template(render, prompt, bos)
    if '"""' in body:
        raise BadInput("the chat template holds three quotes, which end a Modelfile's text", REMEDY)
    lines = [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(["FROM ./model.gguf", f'TEMPLATE """{body}"""', *lines, ""])


def serve_modelfile(text: str, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[str]]:
    """The prompt that Ollama makes of ``messages`` by a Modelfile, and where it stops."""
    found = _TEMPLATE.search(text)
    if found is None:
        raise BadInput("the Modelfile has no TEMPLATE in three quotes", "write it with verify")
    return render_go(found[1], messages), [json.loads(stop) for stop in _STOP.findall(text)]


def _go_template(render: Render, prompt: Render, bos: str) -> str:
    plain = pieces_of(render, chat(4))
    framed = pieces_of(render, chat(4, system=True))
    asked, asking = pieces_of(render, chat(1)), pieces_of(prompt, chat(1))
    if plain is None or asked is None or asking is None:
        raise BadInput(
            "the chat template rewrites texts or refuses plain conversations, so that no "
            "Modelfile can say what it does",
            REMEDY,
        )
    before, answer, question, _, after = plain
    user_end = asked[1][: shared_start(asked[1], asking[1])]
    user_end = user_end[: shared_start(user_end, answer)]
    turn_end = after[: shared_start(after, question)]
    user = question.removeprefix(turn_end)
    # a template without a place for system texts: training puts them before the user's
    system, system_end = framed[:2] if framed else (before, "\n\n")
    form = _OPENED
    if before.endswith(user) and system_end.endswith(user):
        form = _PLAIN
        before, system_end = before.removesuffix(user), system_end.removesuffix(user)
    parts = {
        "BEFORE": before.removeprefix(bos),
        "SYSTEM": system.removeprefix(bos),
        "SYSTEM_END": system_end,
        "USER": user,
        "USER_END": user_end,
        "ASSISTANT": answer.removeprefix(user_end),
        "ASSISTANT_END": turn_end,
        "PROMPT": asking[1].removeprefix(user_end),
    }
    filled = re.sub(r"[A-Z_]{4,}", lambda m: parts[m[0]].replace("{{", '{{ "{{" }}'), form)
    return filled.replace("{{ if not .System }}{{ end }}", "")


_PLAIN = (
    "{{ if not .System }}BEFORE{{ end }}{{ range .Messages }}"
    '{{ if eq .Role "system" }}SYSTEM{{ .Content }}SYSTEM_END'
    '{{ else if eq .Role "user" }}USER{{ .Content }}USER_END'
    '{{ else if eq .Role "assistant" }}ASSISTANT{{ .Content }}ASSISTANT_END'
    "{{ end }}{{ end }}PROMPT"
)
_OPENED = (
    "{{ $opened := true }}{{ if not .System }}BEFORE{{ end }}{{ range .Messages }}"
    '{{ if eq .Role "system" }}SYSTEM{{ .Content }}SYSTEM_END'
    '{{ else if eq .Role "user" }}{{ if not $opened }}USER{{ end }}{{ .Content }}USER_END'
    '{{ else if eq .Role "assistant" }}ASSISTANT{{ .Content }}ASSISTANT_END'
    "{{ $opened = false }}{{ end }}{{ end }}PROMPT"
)
"""Where what stands before the first user's text opens the turn, and differs from later ones."""
