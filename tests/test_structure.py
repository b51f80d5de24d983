"""The structure of a model, as judge of what families state."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from exams.sweep import zoo
from qlora_core import LoraTargets, Registry, analyse, build_skeleton, detect
from qlora_core.errors import BadInput, MissingEngine
from qlora_core.models.coverage import adapted_layers, with_structure
from qlora_core.models.names import hits, shortest_suffixes
from qlora_core.models.parts import Structure, below
from qlora_core.models.roles import cast_weights, raw_weights
from qlora_core.registry.detect import installed
from qlora_core.testing.cases import require_class

FAMILIES = list(installed().architectures.values())


def structure_of(config: dict[str, Any]) -> Structure:
    return analyse(build_skeleton(config))


def small(model_type: str, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}  # fmt: skip
    return {"model_type": model_type, **sizes, **more}


MOE = small("qwen2_moe", moe_intermediate_size=64, shared_expert_intermediate_size=64,
            num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0])  # fmt: skip
STATE_SPACE = small("bamba", mamba_n_heads=4, mamba_d_head=32,
                    mamba_d_state=16, attn_layer_indices=[1])  # fmt: skip


# --- against the families ---------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_with_its_family_removed_a_model_gets_the_same_layers(family: Any) -> None:
    """The fallback against the plugin, layer by layer and role by role."""
    require_class(family, family.example["model_type"])
    structure = structure_of(dict(family.example))
    modules = set(structure.modules)
    barred = hits(modules, family.targets.never)
    barred |= {path for path in modules if below(path, tuple(family.targets.never))}
    inferred, everything = structure.targets(), set()
    for role in ("attention", "mlp", "recurrent"):
        ours = structure.reached(getattr(family.targets, role), family.targets.outside)
        theirs = structure.reached(getattr(inferred, role), inferred.outside)
        assert ours - barred == theirs - barred
        everything |= theirs
    assert everything == {x.path for x in structure.adaptable()} - structure.nameless()
    stacks = {stack.path for stack in structure.experts}
    assert hits(stacks, family.targets.experts) == hits(stacks, inferred.experts)
    assert set(family.targets.keep_unquantized) >= set(inferred.keep_unquantized)


def test_the_fallback_describes_a_type_that_no_family_claims() -> None:
    found = detect(small("olmo2"), registry=Registry.from_environment(block=["olmo"]))
    assert (found.fit.name, found.provided_by) == ("FALLBACK", "qlora-core")
    assert "read off the model's structure by plugin 'structure'" in found.reason
    assert set(found.targets.target_modules) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_without_torch_the_fallback_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import qlora_core

    for name in [n for n in sys.modules if n.startswith("qlora_core.models")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("analyse", "build_skeleton"):
        monkeypatch.delitem(vars(qlora_core), name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingEngine, match=r"qlora-core\[train\]"):
        detect(small("olmo2"), registry=Registry.from_environment(block=["olmo"]))


def test_without_the_fallback_an_unknown_type_is_an_error() -> None:
    registry = Registry.from_environment(block=["structure", "olmo"])
    with pytest.raises(Exception, match="nobody knows model_type 'olmo2'"):
        detect(small("olmo2"), registry=registry)


LLAVA = {
    "model_type": "llava",
    "text_config": small("llama"),
    "vision_config": small("clip_vision_model", image_size=32, patch_size=8),
}


def test_a_family_inside_a_composite_keeps_its_words_and_leaves_the_tower_alone() -> None:
    found = with_structure(detect(LLAVA))
    assert (found.architecture.name, found.warnings) == ("llama", ())
    assert found.architecture.tokenizer.bos == "required"
    assert found.architecture.targets.outside == ("vision_tower", "multi_modal_projector")
    assert found.architecture.layout.layers == "model.language_model.layers"


def test_where_the_structure_cannot_be_read_a_composite_is_warned_of() -> None:
    registry = Registry.from_environment(block=["structure"])
    found = detect(LLAVA, registry=registry)
    assert found.targets.exclude_modules is None
    assert [notice.code for notice in found.warnings] == ["composite"]


# --- parts ------------------------------------------------------------------------------------


def test_head_and_embeddings_are_found_by_identity_whatever_their_names() -> None:
    found = structure_of(small("rwkv", attention_hidden_size=64))
    assert (found.head, found.embeddings) == ("head", "rwkv.embeddings")
    assert [x.path for x in found.linears if x.role == "head"] == ["head"]


def test_subclasses_of_linear_and_conv1d_are_linear_layers() -> None:
    kinds = {
        name: {x.kind for x in structure_of(dict(family.example)).adaptable()}
        for name, family in installed().architectures.items()
        if name in ("falcon", "gpt2", "llama")
    }
    assert kinds["falcon"] == {"subclass"}
    assert kinds["gpt2"] == {"conv1d"}
    assert kinds["llama"] == {"linear"}


def test_the_widths_of_conv1d_are_not_swapped() -> None:
    found = structure_of(dict(installed().architectures["gpt2"].example))
    fused = next(x for x in found.linears if x.path.endswith("h.0.attn.c_attn"))
    assert (fused.in_features, fused.out_features) == (64, 192)


def test_routers_experts_and_shared_experts_are_told_apart() -> None:
    found = structure_of(MOE)
    assert found.targets() == LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never=found.targets().never,
    )
    assert set(found.targets().never) == {"mlp.shared_expert_gate", "mlp.gate"}
    assert {stack.layer for stack in found.experts} == {"model.layers.1"}
    shared = [x.path for x in found.adaptable("mlp") if "shared_expert" in x.path]
    assert len(shared) == 3


def test_state_space_layers_are_recurrent_and_their_raw_weights_are_left_alone() -> None:
    found = structure_of(STATE_SPACE)
    assert found.targets().recurrent == ("in_proj",)
    assert set(found.targets().never) == {"mamba.out_proj"}
    assert list(found.targets().keep_unquantized) == ["out_proj"]
    assert {x.layer for x in found.adaptable()} == set(found.layers)


def test_a_tower_is_outside_and_so_is_what_stands_beside_the_text_model() -> None:
    found = structure_of(dict(installed().architectures["gemma3"].example))
    assert found.targets().outside == ("vision_tower", "multi_modal_projector")
    assert all(layer.startswith("model.language_model.layers.") for layer in found.layers)
    assert {x.role for x in found.linears if "vision" in x.path} == {"outside"}


def test_a_decoder_with_cross_attention_gets_longer_names() -> None:
    config = {"model_type": "bart", "d_model": 64, "decoder_layers": 2, "vocab_size": 256,
              "decoder_ffn_dim": 128, "decoder_attention_heads": 4}  # fmt: skip
    found = structure_of(config)
    assert "self_attn.q_proj" in found.targets().attention
    assert "encoder_attn.q_proj" in found.targets().never


def test_cross_attention_whose_names_are_the_others_stands_outside() -> None:
    config = {**installed().architectures["bert"].example, "is_decoder": True,
              "add_cross_attention": True}  # fmt: skip
    found = structure_of(config)
    assert (found.targets().outside, found.nameless()) == (("crossattention",), frozenset())
    assert found.targets().mlp == ("intermediate.dense", "output.dense")


def test_a_shared_expert_as_wide_as_there_are_experts_is_no_router() -> None:
    found = structure_of({**MOE, "num_experts": 64, "hidden_size": 96})
    shared = {
        x.path.rpartition(".")[2]: x.role for x in found.linears if "shared_expert." in x.path
    }
    assert shared == dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp")


# --- code that uses weights -------------------------------------------------------------------


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.called = nn.Linear(4, 4)
        self.raw = nn.Linear(4, 4)
        self.sliced = nn.Linear(4, 4)
        self.cast = nn.Linear(4, 4)
        self.start = self.called.weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.called(x).to(self.called.weight.device) @ self.raw.weight
        if len(x) > 1:
            return x @ self.sliced.weight[:2]
        return self.cast(x.to(self.cast.weight.dtype)) + self.sliced(x)


def test_a_weight_that_is_read_in_place_of_a_call_is_noticed() -> None:
    assert raw_weights(Mixer) == {"raw"}


def test_a_cast_to_a_weights_dtype_is_noticed() -> None:
    assert cast_weights(Mixer) == {"cast"}


# --- names ------------------------------------------------------------------------------------


def test_a_name_is_lengthened_until_it_means_one_thing() -> None:
    wanted = {f"m.{i}.attn.dense": "attn.dense" for i in range(2)}
    names, nameless = shortest_suffixes({"attention": wanted}, ["m.0.router.dense", "head"])
    assert (names, nameless) == ({"attention": ("attn.dense",)}, frozenset())


def test_a_name_never_holds_the_number_of_a_layer() -> None:
    wanted = {"m.0.output.dense": "output.dense"}
    names, nameless = shortest_suffixes({"mlp": wanted}, ["m.0.cross.output.dense"])
    assert (names["mlp"], nameless) == ((), {"m.0.output.dense"})


def test_names_of_two_roles_do_not_overlap_where_they_need_not() -> None:
    groups = {
        "attention": {"m.0.attn.c_proj": "attn.c_proj"},
        "mlp": {"m.0.mlp.c_proj": "mlp.c_proj"},
    }
    names, _ = shortest_suffixes(groups, [])
    assert names == {"attention": ("attn.c_proj",), "mlp": ("mlp.c_proj",)}


# --- coverage ---------------------------------------------------------------------------------


def test_the_count_of_trainable_parameters_is_that_of_peft() -> None:
    for name in ("falcon", "gemma3", "gpt2", "llama", "mixtral", "phi3"):
        family = installed().architectures[name]
        found = with_structure(detect(dict(family.example)), rank=4)
        model = build_skeleton(family.example)
        modules = {x.path for x in adapted_layers(analyse(model), found.targets)}
        config = peft.LoraConfig(r=4, target_modules=sorted(modules))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            wrapped = peft.get_peft_model(model, config)
        trainable, everything = wrapped.get_nb_trainable_parameters()
        assert found.trainable_parameters == {
            "rank": 4, "count": trainable, "fraction": pytest.approx(trainable / everything)
        }  # fmt: skip


def test_objections_name_targets_that_hit_nothing_and_layers_left_out() -> None:
    found = with_structure(detect(MOE, architecture="falcon", targets="all"))
    codes = [notice.code for notice in found.warnings]
    assert {"targets-without-layer", "layers-forgotten"} <= set(codes)


def test_objections_name_an_adapter_on_the_head() -> None:
    found = with_structure(detect(small("llama"), targets=r".*(q_proj|lm_head)"))
    assert "adapts-head" in [notice.code for notice in found.warnings]


def test_what_an_expression_matches_in_vain_is_a_notice_and_counts_for_nothing() -> None:
    found = with_structure(detect(small("llama"), targets=r".*(q_proj|lm_head|embed_tokens)"))
    plain = with_structure(detect(small("llama"), targets=r".*q_proj"))
    (notice,) = [n for n in found.warnings if n.code == "targets-without-adapter"]
    assert "2 modules" in notice.message
    assert "lm_head): it is the output head" in notice.message
    assert "embed_tokens): no linear layer" in notice.message
    assert found.trainable_parameters == plain.trainable_parameters
    assert "targets-without-adapter" not in [n.code for n in plain.warnings]


def test_a_rank_below_one_is_bad_input() -> None:
    with pytest.raises(BadInput, match="rank 0"):
        with_structure(detect(small("llama")), rank=0)


# --- every type that transformers knows -------------------------------------------------------


def tiny_configs(shared: Path) -> dict[str, dict[str, Any]]:
    every = json.loads((shared / "architectures" / "tiny_configs.json").read_text())
    named = {k: {**c, "model_type": k.split(":")[-1].split("@")[0]} for k, c in every.items()}
    known = {k: c for k, c in named.items() if c["model_type"] in CONFIG_MAPPING}
    return {k: c for k, c in known.items() if not k.startswith("s2s:")}


def complaints(structure: Structure) -> list[str]:
    """What no structure may say, whatever the type: judged by behaviour and by plain facts."""
    found = []
    targets = structure.targets()
    named = (*targets.attention, *targets.mlp, *targets.recurrent)
    reached = structure.reached(named, targets.outside)
    wanted = {x.path for x in structure.adaptable()} - structure.nameless()
    if reached != wanted:
        found.append(f"names mean other layers: {sorted(reached ^ wanted)[:4]}")
    linears = {x.path: x for x in structure.linears}
    if [path for path in reached if linears[path].layer is None]:
        found.append("a target lies in no decoder layer")
    if structure.head and structure.head in reached:
        found.append("the head is adapted")
    without = set(structure.layers) - {linears[path].layer for path in reached}
    if without:
        found.append(f"no adapter in {sorted(without)[:4]}")
    if [path for path in reached if below(path, targets.outside)]:
        found.append("a tower is adapted")
    return found


SAMPLE = (
    "opt", "mpt", "deepseek_v3", "deepseek_v4", "dbrx", "gpt_oss", "jamba", "mamba2", "falcon_h1",
    "nemotron_h", "qwen3_next", "recurrent_gemma", "granitemoehybrid", "longcat_flash", "llama4",
    "bert", "bart", "musicgen", "gptj", "xlm", "zamba2", "vlm:llava", "vlm:qwen2_5_vl", "fuyu",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_all_types_is_read_rightly(name: str, shared: Path) -> None:
    configs = tiny_configs(shared)
    if name not in configs:
        pytest.skip(f"this transformers does not know {name}")
    try:
        found = structure_of(configs[name])
    except BadInput as error:
        if Version(transformers.__version__) >= Version("5.23"):
            raise
        pytest.skip(f"this transformers cannot build that config: {error.problem}")
    assert complaints(found) == []


KNOWN_EXCEPTIONS = {
    "blt": "the patcher runs without gradients, and cross-attention's queries see one key",
    "mllama": "a text skips the layers that look at an image, their MLPs too",
    "reformer": "a layer called value is adaptable in one kind of attention, raw in the other",
    "vlm:pi0": "no causal decoder: a policy for robots, whose text model serves as an encoder",
    "vlm:t5gemma2": "an encoder-decoder, with the tower inside the encoder",
    "vlm:vision-encoder-decoder": "its tower bears the name of a part of its text model",
}
"""What the structure does not get right yet -> why."""


def learning(model: nn.Module, structure: Structure) -> list[str]:
    """Paths of the layers that ``structure`` would adapt and that a text does not reach.

    Behaviour, not analysis: parameters that start at zero are randomised, then the gradients
    of two forward and backward passes over random text are looked at.
    """
    torch.manual_seed(0)
    modules = dict(model.named_modules())
    weights = {x.path: modules[x.path].weight for x in structure.adaptable()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    for weight in weights.values():
        weight.requires_grad_(True)
    for module in modules.values():  # as training does it, for the sake of checkpointing
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(True)
    for number in range(2):
        words = zoo.text(model, rows=4).roll(7 * number)
        nested = getattr(model.config, "vision_config", None) is not None
        modes = {"token_type_ids": torch.zeros_like(words)} if nested else {}
        logits = model(input_ids=words, use_cache=False, **modes)[0]
        (logits * torch.randn_like(logits)).sum().backward()
    return [p for p, w in weights.items() if w.grad is None or not w.grad.any()]


@pytest.mark.slow
def test_every_causal_type_is_read_rightly_and_every_adapted_layer_can_learn(shared: Path) -> None:
    """The whole list; prints the count and each exception."""
    told: dict[str, list[str]] = {}
    for name, config in tiny_configs(shared).items():
        if ":" in name:
            continue
        found = structure_of(config)
        told[name] = complaints(found) + [f"nameless: {p}" for p in sorted(found.nameless())]
        dead = learning(build_skeleton(config, device="cpu").train(), found)
        told[name] += [f"no gradient: {path}" for path in dead]
    wrong = {name: said for name, said in told.items() if said}
    print(f"{len(told) - len(wrong)} of {len(told)} types read rightly")
    for name, said in wrong.items():
        print(f"  {name}: {'; '.join(said[:4])}")
    assert set(wrong) <= set(KNOWN_EXCEPTIONS)


@pytest.mark.slow
def test_every_image_text_type_keeps_its_towers_out(shared: Path) -> None:
    configs = {k: c for k, c in tiny_configs(shared).items() if k.startswith("vlm:")}
    wrong = {}
    for name, config in configs.items():
        found = structure_of(config)
        wrong[name] = [*complaints(found), *(f"nameless: {p}" for p in sorted(found.nameless()))]
    wrong = {name: said for name, said in wrong.items() if said}
    print(f"{len(configs) - len(wrong)} of {len(configs)} image-text types read rightly: {wrong}")
    assert set(wrong) <= set(KNOWN_EXCEPTIONS)
