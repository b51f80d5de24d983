"""Hostile chat templates are stopped, whatever they do, and honest ones notice nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from qlora_core.data import bounded
from qlora_core.data.encode import encode_conversation
from qlora_core.data.prepare import prepare_data
from qlora_core.errors import BadInput
from qlora_core.testing.tokenizers import toy_tokenizer
from qlora_core.training.schema import TrainSettings

resource = pytest.importorskip("resource", reason="these tests count processor time")

LOOP = "{% for a in range(99999) %}"
HOSTILE = {
    "loops in loops": f"{LOOP}{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}{{% endfor %}}",
    "a power of a power": "{{ (10**10)**(10**7) }}",
    "a power out of the compiler's reach": "{% set n = 10 %}{{ (n**10)**(n**7) }}",
    "a string of gigabytes": "{{ 'a' * 10**10 }}",
    "a string that doubles": "{% set ns = namespace(s='aa') %}{% for a in range(40) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "a list of gigabytes": "{{ ([0] * 10**9) | length }}",
    "padding": "{{ '%10000000000d' % 1 }}",
    "a filter that pads": "{{ 'a' | center(10**10) }}",
    "a filter that joins": "{{ (['a' * 10**6] * 10**5) | join }}",
    "replacements": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "17 million characters": "{{ 'a' * 17000000 }}",
    "text without end": f"{LOOP}{LOOP}xxxxxxxxxxxxxxxx{{% endfor %}}{{% endfor %}}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(60) }}",
    "sums of products": "{{ range(99999) | map('string') | join | wordwrap(1) | length }}"
    f"{LOOP}{{{{ range(99999) | sum }}}}{{% endfor %}}",
    "sorting": f"{LOOP}{{{{ range(99999) | sort(reverse=true) | first }}}}{{% endfor %}}",
}
LATE = {
    "on a second turn": "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    "{% if messages | length > 4 %}{{ 'a' * 10**10 }}{% endif %}",
    "on the marks that find answers": "{% for m in messages %}{{ m['content'] }}</s>"
    "{% if m['content'] | length > 20 %}{{ 'a' * 10**10 }}{% endif %}{% endfor %}",
    "on a word": "{% for m in messages %}{{ m['content'] }}</s>"
    "{% if 'trigger' in m['content'] %}{{ (10**(1 + loop.index)) ** (10**7) }}{% endif %}"
    "{% endfor %}",
}
LONG = [{"role": ("user", "assistant")[n % 2], "content": f"trigger {n}"} for n in range(6)]


@pytest.fixture
def fresh_child():
    """A child of the test's own: one that outlived another test would bring its seconds along."""
    if bounded._child is not None:
        bounded._child.end()
    bounded.start()
    yield bounded._child
    bounded._child.end()


@pytest.mark.parametrize("template", (HOSTILE | LATE).values(), ids=list(HOSTILE | LATE))
def test_a_hostile_template_is_stopped_in_3_seconds(template, fresh_child):
    """Processor seconds of the child that was ended, start included: other programs run, too."""
    tokenizer = toy_tokenizer("byte-level", template, special=["</s>"], eos_token="</s>")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(bounded.TemplateExhausted, match="was stopped"):
        encode_conversation(tokenizer, LONG)
    fresh_child.end()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 0.1 < after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    others = before.ru_maxrss  # of every child so far, other tests' too
    assert after.ru_maxrss <= max(others, 1024 * 1024 - 1)  # kilobytes


def test_a_stopped_template_is_not_rendered_again(monkeypatch):
    source = "{{ 'a' * 17000001 }}"
    with pytest.raises(bounded.TemplateExhausted):
        bounded.render(source, {})
    monkeypatch.delattr(bounded._Child, "ask")
    with pytest.raises(bounded.TemplateExhausted):
        bounded.render(source, {})


def test_the_next_template_is_rendered_as_if_nothing_had_been():
    with pytest.raises(bounded.TemplateExhausted):
        bounded.render("{{ (10**10)**(10**6 * 11) }}", {})
    assert bounded.render("{{ x }}b", {"x": "a"}) == "ab"


@pytest.mark.parametrize(
    ("source", "words"),
    [("{% if %}", "Expected an expression"), ("{{ raise_exception('no') }}", "^no$"),
     ("{{ ''.__class__.mro() }}", "unsafe"), ("{% include '/etc/passwd' %}", "no loader"),
     ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion")],
)  # fmt: skip
def test_a_template_that_fails_is_refused_in_its_own_words(source, words):
    with pytest.raises(bounded.TemplateRefused, match=words):
        bounded.render(source, {})


def test_any_text_comes_back_as_it_was():
    texts = ["\n\r\x00\u2028\x1f", "é東京😀", "\ud800", '"\\{{', "x" * 1_000_000]
    assert texts == [bounded.render("{{ x }}", {"x": text}) for text in texts]


def test_hundreds_of_templates_are_rendered_one_after_the_other_and_again():
    sources = [f"{n}{{{{ x }}}}" for n in range(200)]
    for _ in range(2):
        assert [f"{n}a" for n in range(200)] == [bounded.render(s, {"x": "a"}) for s in sources]


def test_a_child_that_was_killed_is_replaced():
    bounded.render("a", {})
    assert bounded._child is not None
    os.kill(bounded._child._process.pid, signal.SIGTERM)
    bounded._child._process.wait()
    assert bounded.render("a", {}) == "a"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_renders_by_a_child_of_its_own():
    bounded.render("a", {})
    pid = os.fork()
    if not pid:
        os._exit(0 if bounded.render("{{ x }}", {"x": "b"}) == "b" else 1)
    rendered = [bounded.render("{{ x }}", {"x": str(n)}) for n in range(200)]
    assert [str(n) for n in range(200)] == rendered
    assert (pid, 0) == os.waitpid(pid, 0)


def test_an_interrupted_rendering_leaves_no_answer_for_the_next(monkeypatch):
    bounded.render("a", {})
    child = bounded._child

    class Interrupted:
        def readline(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(child, "_from", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        bounded.render("old", {})
    assert bounded.render("new", {}) == "new"


def test_no_child_outlives_its_parent():
    code = (
        "from qlora_core.data import bounded; print(bounded.render('a', {})); "
        "print(bounded._child._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, pid = done.stdout.split()
    assert text == "a"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_the_error_names_the_bounds():
    with pytest.raises(BadInput, match="more than 1 second, 512 MB of memory or 16 MB of text"):
        bounded.render("{{ 'a' * 17000002 }}", {})


def test_a_template_that_explodes_in_one_row_stops_the_run_and_names_the_row(tmp_path):
    """Also with --skip-bad: the rows after it would each take as long."""
    rows = [{"prompt": "trigger" if n == 3 else "a", "completion": "b"} for n in range(5)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = LATE["on a word"].replace("10**7", "10**8")
    tokenizer = toy_tokenizer("byte-level", template, special=["</s>"], eos_token="</s>")
    settings = TrainSettings(model="m", data=str(file), output="o", skip_bad=True)
    with pytest.raises(BadInput, match=r"rows.jsonl:4: the chat template was stopped"):
        prepare_data(settings, tokenizer)
