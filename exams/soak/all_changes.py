"""What can change between a run and its resumption: settings, inputs, records, plugins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exams.soak import small
from qlora_core.training.runs import RECORD

Change = Callable[[small.Bench, Path], dict[str, Any]]
"""``(bench, folder of the run)`` changes the world and returns the settings to resume with."""


def setting(**values: Any) -> Change:
    """Resume with other settings."""
    return lambda bench, output: values  # noqa: ARG005


def rows(change: Callable[[list[str]], list[str]]) -> Change:
    """Resume with other rows."""

    def changed(bench: small.Bench, output: Path) -> dict[str, Any]:
        path = output.with_name("other rows.jsonl")
        lines = bench.data.read_text("utf-8").splitlines(keepends=True)
        path.write_text("".join(change(lines)), encoding="utf-8")
        return {"data": str(path)}

    return changed


def model(change: Callable[[Path], object]) -> Change:
    """Resume with another base model."""

    def changed(bench: small.Bench, output: Path) -> dict[str, Any]:
        folder = shutil.copytree(bench.model, output.with_name("other model"), dirs_exist_ok=True)
        change(folder)
        return {"model": str(folder)}

    return changed


def recorded(key: str, value: Any) -> Change:
    """Resume what was recorded elsewhere: with other packages, processes or hardware."""

    def changed(bench: small.Bench, output: Path) -> dict[str, Any]:  # noqa: ARG001
        record = json.loads((output / RECORD).read_text("utf-8"))
        record["identity"][key] = value
        (output / RECORD).write_text(json.dumps(record), encoding="utf-8")
        return {}

    return changed


def _one_weight(folder: Path) -> None:
    small.edit_weights(folder, "model.layers.1.mlp.down_proj.weight", lambda t: t[5, 7].add_(0.5))


def _one_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(bytes(content))


def _edited(name: str, old: str, new: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text("utf-8")
        if old not in text:
            raise ValueError(f"{name} does not hold {old!r}")
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return edit


def _template(folder: Path) -> None:
    text = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _preparing_plugin(bench: small.Bench, output: Path) -> dict[str, Any]:  # noqa: ARG001
    path = output.with_name("preparing.py")
    path.write_text(
        "from qlora_core import hookimpl\n\n\n@hookimpl\n"
        "def qlora_prepare_model(model, architecture):\n"
        "    model.get_input_embeddings().weight.data.mul_(1.01)\n",
        encoding="utf-8",
    )
    return {"plugin": (str(path),)}


def _evaluation_rows(bench: small.Bench, output: Path) -> dict[str, Any]:  # noqa: ARG001
    path = output.with_name("evaluation.jsonl")
    small.make_rows(path, 6, seed=5)
    return {"eval_data": str(path), "eval_split": 0.0}


DECIDING: dict[str, tuple[str, Change]] = {
    "epochs instead of steps": ("epochs", setting(epochs=2.0, max_steps=None)),
    "more steps": ("max_steps", setting(max_steps=9)),
    "fewer steps": ("max_steps", setting(max_steps=7)),
    "seed": ("seed", setting(seed=1)),
    "rank": ("rank", setting(rank=8)),
    "alpha": ("alpha", setting(alpha=3.0)),
    "dropout": ("dropout", setting(dropout=0.2)),
    "targets": ("targets", setting(targets="attention")),
    "rslora": ("rslora", setting(rslora=True)),
    "dora": ("dora", setting(dora=True)),
    "learning rate": ("learning_rate", setting(learning_rate=2e-2)),
    "schedule": ("schedule", setting(schedule="linear")),
    "warm-up": ("warmup", setting(warmup=0.5)),
    "optimizer": ("optimizer", setting(optimizer="adamw")),
    "weight decay": ("weight_decay", setting(weight_decay=0.1)),
    "gradient clipping": ("max_gradient_norm", setting(max_gradient_norm=0.1)),
    "batch size": ("batch_size", setting(batch_size=4)),
    "accumulation": ("gradient_accumulation", setting(gradient_accumulation=1)),
    "max length": ("max_length", setting(max_length=20)),
    "overlong rows": ("overlong", setting(overlong="drop")),
    "trusted roles": ("trusted_roles", setting(trusted_roles="system")),
    "recomputed activations": ("gradient_checkpointing", setting(gradient_checkpointing="on")),
    "compiled or not": ("compile", setting(compile="off")),
    "plain road": ("plain", setting(plain=True)),
    "padded samples": ("packing", setting(packing=False)),
    "evaluation share": ("eval_split", setting(eval_split=0.4)),
    "evaluation interval": ("eval_every", setting(eval_every=2)),
    "early stop": ("early_stop", setting(early_stop=2)),
    "which adapter is kept": ("final_adapter", setting(final_adapter="best")),
    "4-bit type": ("quantize", setting(quantize="fp4")),
    "no 4-bit at all": ("quantize", setting(quantize="none")),
    "double quantization": ("double_quantization", setting(double_quantization=False)),
    "compute dtype": ("hardware", setting(compute_dtype="bfloat16")),
    "device": ("device", setting(device="auto")),
    "family": ("family", setting(architecture="qwen")),
    "columns": ("columns", setting(columns={})),
    "bad rows skipped": ("skip_bad", setting(skip_bad=True)),
    "another answer": ("data_hash", rows(lambda r: [*r[:-1], r[-1].replace("it is", "it's")])),
    "a row more": ("data_hash", rows(lambda r: [*r, r[0]])),
    "a row less": ("data_hash", rows(lambda r: r[1:])),
    "rows in another order": ("data_hash", rows(lambda r: r[::-1])),
    "other evaluation rows": ("evaluation_hash", _evaluation_rows),
    "one base weight": ("base_hash", model(_one_weight)),
    "one bit of a base weight": ("base_hash", model(_one_bit)),
    "the base's config": ("base_hash", model(_edited("config.json", "1e-06", "1e-05"))),
    "the base's code": ("base_hash", model(lambda f: (f / "modeling.py").write_text("x = 1"))),
    "tokenizer": ("data_hash", model(_edited("tokenizer.json", '"e": ', '"\\u0113": '))),
    "chat template": ("template_hash", model(_template)),
    "a plugin that prepares models": ("plugins", _preparing_plugin),
    "another release": ("versions", recorded("versions", {"torch": "2.6.0"})),
    "two processes": ("processes", recorded("processes", 2)),
    "another device": ("hardware", recorded("hardware", "cuda, torch.bfloat16")),
}  # fmt: skip
"""What is changed -> the recorded key that must be named."""


def _moved(bench: small.Bench, output: Path) -> dict[str, Any]:
    folder = shutil.copytree(bench.model, output.with_name("moved model"), dirs_exist_ok=True)
    data = shutil.copy(bench.data, output.with_name("moved rows.jsonl"))
    return {"model": str(folder), "data": str(data)}


def _watching_plugin(bench: small.Bench, output: Path) -> dict[str, Any]:  # noqa: ARG001
    path = output.with_name("watching.py")
    path.write_text(
        "from qlora_core import hookimpl\n\n\n@hookimpl\n"
        "def qlora_run_finished(outcome):\n    pass\n",
        encoding="utf-8",
    )
    return {"plugin": (str(path),)}


HARMLESS: dict[str, tuple[str, Change]] = {
    "model and data moved": ("model", _moved),
    "saved more often": ("save_every", setting(save_every=1)),
    "more checkpoints kept": ("keep", setting(keep=5)),
    "sample prompts": ("sample_prompts", setting(sample_prompts=2)),
    "memory budget": ("memory_budget", setting(memory_budget=8.0)),
    "tracker": ("trackers", setting(trackers=("tensorboard",), block=("report",))),
    "offline": ("offline", setting(offline=True)),
    "revision of a local folder": ("revision", setting(revision="v2")),
    "a plugin that only watches": ("plugin", _watching_plugin),
    "a plugin switched off": ("block", setting(block=("report", "tensorboard", "xlstm"))),
    "code of its own allowed": ("trust_remote_code", setting(trust_remote_code="0" * 64)),
}
