"""Chat templates made to harm: each rendering ends in seconds, and none reaches outside."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from exams.soak.traps import canary, in_a_child
from exams.suite import Case, Suite
from qlora_core.data.encode import encode_conversation
from qlora_core.errors import BadInput
from qlora_core.testing.tokenizers import toy_tokenizer

SECONDS = 3.0
"""What one conversation may take of the processor, whatever its template does."""
PATIENCE = 15.0
"""What it may take by the clock: the machine may be busy with other things."""
ROWS = 3
"""Conversations in a row: a template that was stopped once is not started again."""
GOOD = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
NINES = "range(99999)"

# {canary} is a file that must never appear
LOOPS = {
    "nested loops": f"{{% for a in {NINES} %}}{{% for b in {NINES} %}}{{% endfor %}}{{% endfor %}}",
    "nested loops of text": f"{{% for a in {NINES} %}}{{% for b in {NINES} %}}xxxxxxxx"
    "{% endfor %}{% endfor %}",
    "a power without end": "{{ (10 ** 10) ** (10 ** 7) }}",
    "powers of powers": "{{ 9 ** 9 ** 9 ** 9 }}",
    "a shift of ten billion": "{{ 2 ** (10 ** 10) }}",
    "a product of great numbers": "{% set ns = namespace(x=7 ** 99999) %}{% for a in "
    f"{NINES} %}}{{% set ns.x = ns.x * ns.x %}}{{% endfor %}}",
    "a loop over a product": "{% for a in 'ab' * 10 ** 8 %}{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "recursive loop": "{% for m in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "a text of a billion": "{{ 'x' * 10 ** 9 }}",
    "texts of 200 MB": "{% set a = 'x' * 2 * 10 ** 8 %}{{ a }}{{ a }}{{ a }}",
    "a text that doubles": "{% set ns = namespace(x='x') %}{% for a in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "a list of a billion": "{{ ([1] * 10 ** 9) | length }}",
    "a list that doubles": "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    "a billion filters": f"{{% for a in {NINES} %}}{{{{ {NINES} | list | sort | length }}}}"
    "{% endfor %}",
    "padding of a billion": "{{ '%1000000000d' % 1 }}",
    "formatted padding": "{{ '{:>1000000000}'.format(1) }}",
    "centred in a billion": "{{ 'x' | center(10 ** 9) }}{{ 'x'.ljust(10 ** 9) }}",
    "a replacement that grows": "{{ ('a' * 10 ** 5).replace('a', 'b' * 10 ** 5) }}",
    "indented a billion": "{{ ('\n' * 10 ** 5) | indent(10 ** 5) }}",
    "a join that grows": f"{{{{ {NINES} | join('x' * 10 ** 6) }}}}",
    "a range past its limit": "{{ range(10 ** 9) | list }}",
    "batches without end": f"{{% for a in {NINES} | batch(1) %}}{{% for b in {NINES} | batch(1) %}}"
    "{% endfor %}{% endfor %}",
    "lorem ipsum": "{{ lipsum(n=10 ** 7) }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "many blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
}
ESCAPES = {
    "the class of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a helper": "{{ cycler.__init__.__globals__.os.system('touch {canary}') }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'].popen('touch {canary}').read() }}",
    "an attribute by filter": "{{ ''|attr('__class__')|attr('__base__') }}",
    "an attribute by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "builtins of raise": "{{ raise_exception.__globals__['__builtins__']"
    "['open']('{canary}', 'w').write('run') }}",
    "the clock's module": "{{ strftime_now.__globals__['sys'].modules['os']"
    ".system('touch {canary}') }}",
    "an import": "{% import 'os' as os %}{{ os.system('touch {canary}') }}",
    "a file included": "{% include '/etc/passwd' %}",
    "a template extended": "{% extends '/etc/passwd' %}",
    "a list changed": "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "a message changed": "{{ messages[0].update({'content': 'x'}) }}",
    "self": "{{ self._TemplateReference__context.environment.loader }}",
    "a request": "{{ url_for.__globals__ }}{{ config.from_object('os') }}",
}
BROKEN = {
    "an error of its own": "{{ raise_exception('no thanks') }}",
    "no Jinja": "{% for m in messages %}",
    "division by zero": "{{ 1 // 0 }}",
    "an unknown filter": "{{ messages | nothing }}",
    "what messages lack": "{{ messages[0].content.parts[3].text }}",
}
TEMPLATES = {
    **LOOPS,
    **ESCAPES,
    **BROKEN,
    **{f"{name}, after a sound start": GOOD + text for name, text in LOOPS.items()},
}
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]


def cases(count: int, seed: int) -> Iterator[Case]:
    """Each template (or so many of them) with a few conversations, as training renders them."""
    del seed
    step = max(1, len(TEMPLATES) // count)
    with tempfile.TemporaryDirectory() as place:
        for number, (name, template) in enumerate(list(TEMPLATES.items())[::step]):
            ran, _ = canary(Path(place), str(number))
            yield _rendered(name, template.replace("{canary}", str(ran)), ran)
        yield _rendered("a sound one, after them all", GOOD, Path(place) / "none")


def _rendered(name: str, template: str, ran: Path) -> Case:
    used, passed, fault, done = [], [], "", None
    for _ in range(ROWS):
        _encode(GOOD)  # starts the process again that the last template may have ended
        before, start = _processor_seconds(), time.monotonic()
        try:
            done = _encode(template)
        except BadInput:
            pass
        except Exception as error:
            fault = f"{type(error).__name__}: {str(error)[:200]}"
        passed.append(time.monotonic() - start)
        used.append(_processor_seconds() - before)
    if not fault and (max(used) > SECONDS or max(passed) > PATIENCE):
        fault = f"took {max(used):.1f} s of the processor, {max(passed):.1f} s by the clock"
    if ran.exists():
        fault = "ran a command"
    if "root:" in str(done):
        fault = "shows a file"
    if template == GOOD and done != "user: hello</s>assistant: world</s>":
        fault = f"rendered {done!r}"
    figures = {"processor seconds": max(used), "seconds by the clock": max(passed)}
    return Case(name, not fault, fault, figures)


def _processor_seconds() -> float:
    """Of this process and of those that it started, ended ones too."""
    running = (child.cpu_times() for child in psutil.Process().children())
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    children = sum(times.user + times.system for times in running)
    return float(time.process_time() + children + ended.ru_utime + ended.ru_stime)


def _encode(template: str) -> str:
    tokenizer: Any = toy_tokenizer("byte-level", template, eos_token="</s>", pad_token="<pad>")
    return encode_conversation(tokenizer, CHAT).text


def plain(count: int, seed: int) -> Iterator[Case]:
    """``apply_chat_template`` with the same templates, each in a child with 15 s and 4 GB,
    its start included.
    """
    del count, seed
    code = (
        "import sys\nfrom qlora_core.testing.tokenizers import toy_tokenizer\n"
        "t = toy_tokenizer('byte-level', sys.argv[1], eos_token='</s>', pad_token='<pad>')\n"
        f"try:\n    t.apply_chat_template({CHAT!r}, tokenize=False)\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    for name, template in TEMPLATES.items():
        yield in_a_child(name, ["-c", code, template], seconds=15)


SUITE = Suite(
    "hostile-templates", "a chat template is stopped within 3 s and reaches nothing outside",
    cases, full=70, quick=17, baseline=plain,
)  # fmt: skip
