"""The exam: what every family keeps, ours and strangers', checked without network or GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoConfig

from qlora_core.facts.architecture import ROLES, Architecture
from qlora_core.models.adapter_checks import check_gradients
from qlora_core.models.adapters import attach
from qlora_core.models.loader import load_model
from qlora_core.models.names import hits
from qlora_core.models.parts import below
from qlora_core.models.skeleton import build_skeleton
from qlora_core.registry.detect import detect
from qlora_core.registry.detection import Fit
from qlora_core.testing.cases import Case, cases_of, marked, records_of, require_class, structure_of
from qlora_core.training.losses import summed_loss

CONVERSATION = (
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And 'twice' that?\n"},
    {"role": "assistant", "content": "Eight,\nof course."},
)
"""Two turns, with a system text and characters that templates may trip over."""
_LARGEST_EXAMPLE = 5_000_000
_SPECIAL = {"bos": "<first>", "eos": "<last>"}


class ArchitectureContract:
    """A test per promise, for every family that ``plugin`` provides.

        class TestMyFamily(ArchitectureContract):
            plugin = "my_family"

    ``plugin`` is the name of the entry point, the path of a plugin file (``my_family.py``), or
    ``"*"`` for all of qlora-core's own. Each family is examined as every model type that it
    claims and that transformers can build; of ours, types beyond the one of a family's example
    are marked ``slow``.
    """

    plugin: ClassVar[str]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Pytest's hook: one case per family and model type."""
        if "case" in metafunc.fixturenames:
            found = list(cases_of(self.plugin))
            metafunc.parametrize("case", [marked(case, self.plugin) for case in found])

    def test_the_plugin_is_installed_and_active(self) -> None:
        """It must be found by its entry point, import, and register."""
        records = records_of(self.plugin)
        assert records, (
            f"no entry point of the group qlora_core is called {self.plugin!r}: "
            "install the package (again, after a new entry point)"
        )
        broken = [f"{r.name}: {r.detail} -> {r.repair}" for r in records if r.status != "active"]
        assert not broken, "; ".join(broken)

    def test_it_recognises_its_own_example(self, case: Case) -> None:
        """Detection must choose this family for its example, and not as a last resort."""
        found = detect(case.config, registry=case.registry)
        assert (found.architecture.name, found.fit > Fit.FALLBACK) == (case.family.name, True), (
            f"{case.model_type} is detected as {found.architecture.name} ({found.reason}): "
            "state the type in model_types, narrow `where`, or name the other in `supersedes`"
        )

    def test_its_example_is_small(self, case: Case) -> None:
        """The example must build, and be small enough to train on a CPU in a second."""
        size = structure_of(case).parameters
        assert 0 < size <= _LARGEST_EXAMPLE, (
            f"the example has {size:,} parameters: shrink its vocabulary and widths"
        )

    def test_it_names_its_source(self, case: Case) -> None:
        """Facts that nobody can check are rumours."""
        assert case.family.source.strip(), "say in `source` where the facts come from"

    def test_every_target_is_a_linear_layer_of_a_decoder_layer(self, case: Case) -> None:
        """A name that hits nothing, or something else, is silently dropped or fails in PEFT."""
        structure, targets = structure_of(case), case.family.targets
        linears = {x.path: x.layer for x in structure.linears}
        for role in ("attention", "mlp", "recurrent"):
            for name in getattr(targets, role):
                reached = structure.reached((name,), targets.outside)
                assert reached, f"{name!r} hits no module; linear layers: {_leaves(linears)}"
                wrong = sorted(path for path in reached if linears.get(path) is None)
                assert not wrong, f"{name!r} also means {wrong[:4]}: lengthen the name"

    def test_no_linear_layer_is_forgotten(self, case: Case) -> None:
        """Layers without an adapter cannot learn; state on purpose which those are, and why."""
        structure, targets = structure_of(case), case.family.targets
        named = (*_named(case.family), *targets.never)
        reached = structure.reached(named, targets.outside)
        reached |= {path for path in structure.modules if below(path, tuple(targets.never))}
        rest = sorted(x.path for x in structure.adaptable() if x.path not in reached)
        assert not rest, f"no adapter for {rest[:6]}: add a target, or `never` with the reason"

    def test_head_embeddings_routers_and_towers_carry_no_adapter(self, case: Case) -> None:
        """Such adapters are as large as the vocabulary, unbalance experts, or never learn."""
        structure, targets = structure_of(case), case.family.targets
        reached = structure.reached(_named(case.family), targets.outside)
        allowed = {x.path for x in structure.adaptable()}
        wrong = sorted(reached - allowed)
        assert not wrong, f"adapters on {wrong[:6]}: lengthen the names, or use `outside`"

    def test_experts_are_parameters_that_exist(self, case: Case) -> None:
        """Expert stacks must be named exactly: they are what is quantized and adapted."""
        structure = structure_of(case)
        stacks = {stack.path for stack in structure.experts}
        stated = hits(stacks, case.family.targets.experts)
        assert stated == stacks, f"state in `experts`: {sorted(structure.targets().experts)}"
        idle = [name for name in case.family.targets.experts if not hits(stacks, [name])]
        assert not idle, f"no parameter is called {idle}"

    def test_all_other_names_exist_too(self, case: Case) -> None:
        """A misspelt name in `never`, `outside` or `keep_unquantized` protects nothing."""
        modules, targets = structure_of(case).modules, case.family.targets
        for name in (*targets.never, *targets.keep_unquantized):
            assert hits(modules, [name]), f"no module is called {name!r}"
        for name in targets.outside:
            assert any(below(path, (name,)) for path in modules), f"nothing lies below {name!r}"

    def test_what_breaks_in_4_bits_stays_unquantized(self, case: Case) -> None:
        """Weights that are used without calling their layer fail, or corrupt, when packed."""
        kept = tuple(case.family.targets.keep_unquantized)
        risky = {x.path: x.keep for x in structure_of(case).linears if x.keep}
        missing = sorted(set(risky) - hits(risky, kept))
        assert not missing, f"add to keep_unquantized: {missing[:4]} ({risky[missing[0]]})"

    def test_its_layout_is_where_the_parts_are(self, case: Case) -> None:
        """Paths of decoder layers, final norm, embeddings and head."""
        stated, found = case.family.layout, structure_of(case).layout()
        for part in ("layers", "final_norm", "embeddings"):
            assert getattr(stated, part) == getattr(found, part), (
                f"layout.{part} is {getattr(found, part)!r}"
            )
        assert set(found.head) <= set(stated.head), f"layout.head lacks {found.head}"

    def test_only_the_answer_and_the_end_of_its_turn_are_learned(self, case: Case) -> None:
        """The model must learn to answer and to stop, not to ask."""
        segments = case.family.prompt.render(CONVERSATION, **_SPECIAL)
        learned = [segment.text for segment in segments if segment.learned]
        answers = [m["content"] for m in CONVERSATION if m["role"] == "assistant"]
        assert len(learned) == len(answers)
        for text, answer in zip(learned, answers, strict=True):
            assert text.startswith(answer), f"learned {text!r} instead of {answer!r}"
            assert text != answer, "end the assistant's turn with {eos} or a token of its own"
        told = "".join(segment.text for segment in segments if not segment.learned)
        for message in CONVERSATION:
            if message["role"] != "assistant":
                assert message["content"] in told, f"{message['content']!r} is lost"

    def test_what_is_trained_is_what_is_served(self, case: Case) -> None:
        """The chat template that is saved must render the very text that was trained."""
        prompt = case.family.prompt
        for special in (_SPECIAL, {"bos": "", "eos": ""}):
            for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[:3]):
                ours = "".join(s.text for s in prompt.render(messages, **special))
                served = _served(prompt.jinja(), messages, special)
                assert ours == served, "render() and jinja() differ: report this"

    def test_the_prompt_begins_as_the_tokenizer_demands(self, case: Case) -> None:
        """A BOS token that is missing, or too many, can cost a model its wits."""
        has, bos = "{bos}" in case.family.prompt.start, case.family.tokenizer.bos
        remedy = f'the policy says bos={bos!r}: set the prompt\'s start to "{{bos}}" or ""'
        assert bos == "as tokenizer" or has == (bos == "required"), remedy

    def test_in_4_bits_every_adapter_learns(self, case: Case, tmp_path: Path) -> None:
        """Load the example in NF4, take one step: every layer 4-bit, every adapter a gradient."""
        require_class(case.family, case.model_type)
        torch.manual_seed(0)
        base: Any = build_skeleton(case.config, device="cpu")
        _save(_awake(base), case.config, tmp_path)
        loaded = load_model(
            tmp_path, compute_dtype=torch.float32, device="cpu", registry=case.registry
        )
        loaded.quantization.require_complete()
        kept = tuple(case.family.targets.keep_unquantized)
        layers = [x.path for x in structure_of(case).adaptable() if not below(x.path, kept)]
        owed = len({id(loaded.model.get_submodule(path).weight) for path in layers})  # shared once
        packed = loaded.quantization.quantized.tensors
        assert packed >= owed, f"{packed} tensors are 4-bit, {owed} layers should be: report this"
        model: Any = attach(loaded.model, architecture=case.family, rank=4)
        words = torch.randint(0, _vocabulary(loaded.model), (4, 16))
        model.train()
        batch = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words}
        loss: Any = summed_loss(model, batch)
        loss.backward()
        assert torch.isfinite(loss), "the example's loss is not finite"
        check_gradients(model)


def _named(family: Architecture) -> tuple[str, ...]:
    targets = family.targets.by_role()
    return tuple(name for role in ROLES if role != "experts" for name in targets.get(role, ()))


def _leaves(paths: Mapping[str, Any]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))


def _served(template: str, messages: Any, special: Mapping[str, str]) -> str:
    """The text as transformers renders it: its Jinja settings, nothing more."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    tokens = {f"{name}_token": text or None for name, text in special.items()}
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=False, **tokens
    )


def _vocabulary(model: Any) -> int:
    """How many tokens can be read and predicted."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    sizes = [int(part.weight.shape[0]) for part in parts if hasattr(part, "weight")]
    return min(sizes or [int(model.config.get_text_config(decoder=True).vocab_size)])


def _awake(model: Any) -> Any:
    """``model`` with values in what starts at zero: trained checkpoints have some there."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter.data, std=0.1)
    return model


def _save(model: Any, config: Mapping[str, Any], folder: Path) -> None:
    """As checkpoints are published: with the config of the whole, not only of the text part."""
    model.save_pretrained(folder)
    values = {key: value for key, value in config.items() if key != "model_type"}
    AutoConfig.for_model(config["model_type"], **values).save_pretrained(folder)
