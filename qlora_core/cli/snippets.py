"""Code to paste into another trainer: what was detected, in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_core.registry.detection import Detection

_QUANTIZATION = """\
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    llm_int8_skip_modules={skip!r},
)
"""
_CHECK = """\
four_bit = sum(type(module).__name__ == "Linear4bit" for module in model.modules())
assert four_bit, "transformers left this family in 16 bits: qlora_core.load() does not"
"""
_LORA = """\
lora = LoraConfig(
    task_type="CAUSAL_LM",
    r={rank},
    lora_alpha={alpha},
    lora_dropout=0.0,
    target_modules={modules!r},{more}
)
"""
_PEFT = """\
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

{quantization}{lora}
model = AutoModelForCausalLM.from_pretrained({model!r}, quantization_config=quantization)
{check}model = get_peft_model(model, lora)
model.print_trainable_parameters()
"""
_TRL = """\
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

{quantization}{lora}
model = AutoModelForCausalLM.from_pretrained({model!r}, quantization_config=quantization)
{check}trainer = SFTTrainer(
    model=model,
    args=SFTConfig(output_dir="output"),
    train_dataset=load_dataset("json", data_files="train.jsonl", split="train"),
    peft_config=lora,
)
trainer.train()
"""
_EXPERTS = """\
# transformers leaves this family's experts in 16 bits, and PEFT may take its targets for others
model, tokenizer = qlora_core.load({model!r})
model = qlora_core.attach(model, targets={scope!r}, rank={rank}, alpha={alpha})
"""
_EXPERTS_PEFT = """\
import qlora_core

{load}model.print_trainable_parameters()
"""
_EXPERTS_TRL = """\
import qlora_core
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

{load}trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    args=SFTConfig(output_dir="output"),
    train_dataset=load_dataset("json", data_files="train.jsonl", split="train"),
)
trainer.train()
"""


def snippet(detection: Detection, target: str, rank: int) -> str:
    """Runnable code for ``peft`` or ``trl`` with this model's targets and skip list.

    Mixtures of experts are loaded and adapted by ourselves: what plain PEFT makes of them differs.
    """
    targets = detection.targets
    if detection.architecture.targets.experts:
        load = _EXPERTS.format(
            model=detection.model, scope=targets.scope, rank=rank, alpha=2 * rank
        )
        return {"peft": _EXPERTS_PEFT, "trl": _EXPERTS_TRL}[target].format(load=load)
    more = "".join(
        f"\n    {name}={value!r},"
        for name, value in (
            ("target_parameters", targets.target_parameters),
            ("exclude_modules", targets.exclude_modules),
        )
        if value
    )
    lora = _LORA.format(rank=rank, alpha=2 * rank, modules=targets.target_modules, more=more)
    template = {"peft": _PEFT, "trl": _TRL}[target]
    quantization = _QUANTIZATION.format(skip=targets.keep_unquantized)
    return template.format(
        model=detection.model, lora=lora, quantization=quantization, check=_CHECK
    )
