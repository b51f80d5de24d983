"""Random models to train on: any size, two families, NF4 on disk, written layer by layer."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from benchmarks.measuring import RANK
from qlora_core.models.store import quantize

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, in Llama's terms."""

    hidden: int
    inner: int
    layers: int
    heads: int
    shared: int
    """Key-value heads."""

    @property
    def attention(self) -> int:
        """Weights of q, k, v and o of one layer."""
        return 2 * self.hidden**2 + 2 * self.hidden**2 * self.shared // self.heads

    @property
    def block(self) -> int:
        """Weights of one layer."""
        return self.attention + 3 * self.hidden * self.inner


SHAPES = {
    "toy": Shape(64, 128, 2, 4, 2),
    "m0": Shape(768, 2048, 6, 12, 6),
    "160m": Shape(1024, 2816, 8, 16, 8),
    "1b": Shape(2048, 5632, 22, 32, 4),
    "8b": Shape(4096, 14336, 32, 32, 8),
}


def config_of(shape: str, vocabulary: int, family: str = "llama") -> PreTrainedConfig:
    """A Llama of that shape, or a GPT-NeoX with as many weights."""
    size = SHAPES[shape]
    common = {
        "vocab_size": vocabulary, "hidden_size": size.hidden, "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads, "max_position_embeddings": 8192, **SPECIAL,
    }  # fmt: skip
    if family == "gpt_neox":
        inner = (size.block - 4 * size.hidden**2) // (2 * size.hidden)
        return GPTNeoXConfig(intermediate_size=inner, tie_word_embeddings=False, **common)
    return LlamaConfig(intermediate_size=size.inner, num_key_value_heads=size.shared, **common)


FAMILIES = ("llama", "gpt_neox")


def write_checkpoint(config: PreTrainedConfig, folder: Path, *, whole: bool = False) -> None:
    """Random bf16 weights, a file per layer, so that no more is in memory; or all in one."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    torch.manual_seed(0)
    files: dict[str, str] = {}
    for number, (_, names) in enumerate(groupby(shapes, key=lambda n: whole or _layer_of(n))):
        tensors = {name: _drawn(name, shapes[name]) for name in names}
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        files |= dict.fromkeys(tensors, file)
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _layer_of(name: str) -> str:
    found = re.search(r"layers\.\d+", name)
    return found.group() if found else name


def _drawn(name: str, shape: torch.Size) -> torch.Tensor:
    """Matrices at transformers' own scale; norms of one, biases of zero."""
    if len(shape) > 1:
        return torch.randn(shape, dtype=torch.bfloat16).mul_(0.02)
    whole = torch.zeros if name.endswith("bias") else torch.ones
    return whole(shape, dtype=torch.bfloat16)


def make_tokenizer(folder: Path) -> Any:
    """A tokenizer of a thousand words, beside the model: TRL asks for one."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(1000)}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(place: Path, config: PreTrainedConfig, device: torch.device) -> Path:
    """A random model in NF4, quantized once: every contestant opens the same bytes."""
    base, folder = place / "base", place / "nf4"
    write_checkpoint(config, base)
    make_tokenizer(base)
    quantize(base, folder, check=False, compute_dtype=torch.bfloat16, device=str(device))
    shutil.rmtree(base)
    return folder


def theirs(folder: Path, device: torch.device) -> Any:
    """What a user of transformers opens; kernels for samples of several lengths where there are."""
    varlen = device.type == "cuda" and find_spec("flash_attn") is not None
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": device},
        attn_implementation="flash_attention_2" if varlen else "sdpa",
    )  # fmt: skip


def lora() -> peft.LoraConfig:
    """Adapters on every linear layer of the decoder."""
    return peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
