"""The settings of a training run: one definition for files, flags, checks and documentation.

Imports nothing of the engine, so that ``--help`` and a settings file need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from qlora_core.errors import BadInput
from qlora_core.facts.roles import listed_roles

GROUPS = ("input and output", "length of the run", "adapters", "optimizer", "batches and memory",
          "evaluation and checkpoints", "base model")  # fmt: skip
EPOCHS = 3.0


def _setting(default: Any, group: int, text: str, **limits: Any) -> Any:
    """A field: ``text`` is its help; ``limits`` are choices, least, above, most, below, metavar."""
    metadata = {"group": GROUPS[group], "help": text, **limits}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that decides a run. Raises BadInput for a value that cannot be used.

    The same names are the keys of a settings file and, with dashes, the flags of
    ``qlora-core train``. ``docs/settings.md`` lists them with the sources of the defaults.
    """

    model: str = _setting(MISSING, 0, "the base model: a folder or a Hub id")
    data: str = _setting(
        MISSING, 0, "training rows: files, folders or Hub ids, separated by commas"
    )
    output: str = _setting(MISSING, 0, "folder of the run; one folder holds one run")
    eval_data: str | None = _setting(
        None, 0, "evaluation rows; without them `eval_split` of the data"
    )
    columns: Mapping[str, str] = _setting(
        {}, 0, "which column is what, where the names do not tell: COLUMN=ROLE,COLUMN=ROLE",
        metavar="COLUMN=ROLE",
    )  # fmt: skip
    skip_bad: bool = _setting(
        False, 0, "set rows that cannot be used aside in a file, instead of stopping"
    )
    resume: bool = _setting(
        False, 0, "go on from the newest whole checkpoint in `output`, if there is one"
    )
    allow_change: tuple[str, ...] = _setting(
        (), 0, "accept that this key differs from the resumed run (repeatable)", metavar="KEY"
    )

    epochs: float | None = _setting(
        None, 1, f"passes over the data (default: {EPOCHS:g}); not together with `max_steps`",
        above=0.0,
    )  # fmt: skip
    max_steps: int | None = _setting(
        None, 1, "optimizer steps, however many epochs that is", least=1
    )
    seed: int = _setting(0, 1, "fixes data order, dropout and the adapters' start", least=0)

    rank: int = _setting(16, 2, "rank of the LoRA matrices", least=1)
    alpha: float | None = _setting(None, 2, "LoRA scale; default: twice the rank", above=0.0)
    dropout: float = _setting(0.0, 2, "dropout before the LoRA matrices", least=0.0, below=1.0)
    targets: str = _setting(
        "all", 2, "attention, all, `all,experts`, layer names, or a regular expression"
    )
    rslora: bool = _setting(False, 2, "scale by alpha / sqrt(rank) (rsLoRA)")
    dora: bool = _setting(False, 2, "learn magnitude and direction apart (DoRA)")

    learning_rate: float | None = _setting(
        None, 3, "peak learning rate; default: 2e-4 up to 13 billion parameters, else 1e-4",
        above=0.0,
    )  # fmt: skip
    schedule: str = _setting(
        "cosine", 3, "how the learning rate falls after the warm-up",
        choices=("cosine", "linear", "constant"),
    )  # fmt: skip
    warmup: float = _setting(
        0.03, 3, "below 1: share of all steps with a rising learning rate; else their number",
        least=0.0,
    )  # fmt: skip
    optimizer: str = _setting(
        "auto", 3, "auto: paged_adamw_32bit on CUDA, adamw elsewhere",
        choices=("auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
    )  # fmt: skip
    weight_decay: float = _setting(0.0, 3, "decoupled weight decay of AdamW", least=0.0)
    max_gradient_norm: float = _setting(
        1.0, 3, "gradients are scaled down to this norm; 0 switches it off", least=0.0
    )

    batch_size: int = _setting(
        4, 4, "samples per micro-batch and process; packed rows hold as many tokens as so many "
        "of the longest have, on CPUs 2,048 at most", least=1,
    )  # fmt: skip
    gradient_accumulation: int = _setting(4, 4, "micro-batches per optimizer step", least=1)
    max_length: int | None = _setting(
        None, 4, "tokens per sample; default: 2048, or what the model can take if that is less",
        least=2,
    )  # fmt: skip
    overlong: str = _setting(
        "cut", 4, "a row past `max_length` loses the start of its prompt, is split at the user's "
        "turns, or is dropped", choices=("cut", "split", "drop"),
    )  # fmt: skip
    trusted_roles: str | None = _setting(
        None, 4, "roles whose texts may hold control tokens, as in `assistant`; default: none, "
        "control tokens that are spelt out in data stay plain text",
    )  # fmt: skip
    gradient_checkpointing: str = _setting(
        "auto", 4, "recompute activations in the backward pass; auto: where memory asks for it",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    memory_budget: float | None = _setting(
        None, 4, "gigabytes that training may take in all, activations are fitted to it; "
        "default: 90 % of what is free", above=0.0,
    )  # fmt: skip
    compile: str = _setting(
        "auto", 4, "compile what lies between matrix products, on CPUs; auto: in long runs",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    packing: bool = _setting(
        True, 4, "samples in rows without padding where a probe allows it; layers by hand need it"
    )
    plain: bool = _setting(
        False, 4, "compute by PEFT and transformers alone, without the fast path"
    )

    eval_split: float = _setting(
        0.0, 5, "share of the rows to hold out for evaluation", least=0.0, below=1.0
    )
    eval_every: int | None = _setting(
        None, 5, "evaluate every so many steps; default: before the first and after the last",
        least=1,
    )  # fmt: skip
    early_stop: int | None = _setting(
        None, 5, "stop after so many evaluations in a row without improvement", least=1
    )
    final_adapter: str = _setting(
        "auto", 5, "which weights to keep at the end; auto: best with `early_stop`, else last",
        choices=("auto", "last", "best"),
    )  # fmt: skip
    save_every: int | None = _setting(
        None, 5, "save a checkpoint every so many steps; default: ten times in a run", least=1
    )
    keep: int = _setting(2, 5, "checkpoints to keep beside the best one", least=1)
    sample_prompts: int = _setting(
        4, 5, "prompts to answer before and after training, for the report", least=0
    )

    trackers: tuple[str, ...] = _setting(
        (), 5, "also write measures for this tracker (repeatable): tensorboard", metavar="NAME"
    )

    quantize: str = _setting(
        "nf4", 6, "4-bit data type of the base weights", choices=("nf4", "fp4", "none")
    )
    double_quantization: bool = _setting(True, 6, "quantize the quantization constants as well")
    compute_dtype: str = _setting(
        "auto", 6, "number format of the matrix products; auto: bfloat16 where the device has it, "
        "else float16 on CUDA, else float32",
        choices=("auto", "bfloat16", "float16", "float32"),
    )  # fmt: skip
    device: str = _setting("auto", 6, "auto, cpu, cuda, cuda:1, ...")
    architecture: str | None = _setting(None, 6, "take this family, whatever fits", metavar="NAME")
    plugin: tuple[str, ...] = _setting(
        (), 6, "also load this plugin file (repeatable)", metavar="FILE"
    )
    block: tuple[str, ...] = _setting((), 6, "switch this plugin off (repeatable)", metavar="NAME")
    revision: str | None = _setting(None, 6, "branch, tag or commit of a Hub model")
    offline: bool = _setting(False, 6, "never touch the network")
    trust_remote_code: str | None = _setting(
        None, 6, "run the Python code that the model's folder brings, if this is its hash",
        metavar="SHA256",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check(entry, getattr(self, entry.name))
        listed_roles(self.trusted_roles)
        if self.epochs is not None and self.max_steps is not None:
            raise BadInput(
                f"both epochs ({self.epochs:g}) and max_steps ({self.max_steps}) are given",
                "they contradict each other: leave one out",
            )
        wants = [k for k in ("eval_every", "early_stop") if getattr(self, k) is not None]
        wants += ["final_adapter = best"] if self.final_adapter == "best" else []
        if wants and self.eval_data is None and not self.eval_split:
            raise BadInput(
                f"{wants[0]} needs evaluation rows, and there are none",
                "give eval_data, or hold some rows out with eval_split",
            )
        if self.early_stop is not None and self.eval_every is None:
            raise BadInput("early_stop counts evaluations", "say how often with eval_every")

    @property
    def keeps_best(self) -> bool:
        """Whether the run ends with the weights of the best evaluation."""
        return self.final_adapter == "best" or (
            self.final_adapter == "auto" and self.early_stop is not None
        )


def kind(entry: Field[Any]) -> str:
    """The value's type without ``None``: str, int, float, bool, tuple or mapping."""
    name = str(entry.type).removesuffix(" | None")
    return {"tuple[str, ...]": "tuple", "Mapping[str, str]": "mapping"}.get(name, name)


def _check(entry: Field[Any], value: Any) -> None:
    """Raise BadInput for a value of the wrong type or outside its limits."""
    name, limits = entry.name, entry.metadata
    if value is None and "None" in str(entry.type):
        return
    if not _of_kind(kind(entry), value):
        raise BadInput(
            f"{name} = {value!r}: expected {_expected(entry)}, got {_named(value)}",
            f"{name}: {limits['help']}",
        )
    choices = limits.get("choices")
    if choices and value not in choices:
        raise BadInput(f"{name} = {value!r} is no choice", f"use one of {', '.join(choices)}")
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "least": ("at least", lambda limit: value >= limit),
        "above": ("more than", lambda limit: value > limit),
        "below": ("less than", lambda limit: value < limit),
    }
    for rule, (words, holds) in rules.items():
        if rule in limits and not holds(limits[rule]):
            raise BadInput(
                f"{name} = {value!r}: must be {words} {limits[rule]:g}", f"{name}: {limits['help']}"
            )
    if kind(entry) == "str" and not value.strip():
        raise BadInput(f"{name} is empty", f"{name}: {limits['help']}")


def _of_kind(name: str, value: Any) -> bool:
    if name in ("int", "float") and isinstance(value, bool):
        return False
    if name == "float":
        return isinstance(value, int | float) and math.isfinite(value)
    if name == "tuple":
        return isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    if name == "mapping":
        return isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values())
    return isinstance(value, {"str": str, "int": int, "bool": bool}[name])


def _named(value: Any) -> str:
    """What kind of value it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "none that is finite"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


def _expected(entry: Field[Any]) -> str:
    words = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
             "tuple": 'a list of texts, as ["a"]', "mapping": "a table of texts"}  # fmt: skip
    return words[kind(entry)]
