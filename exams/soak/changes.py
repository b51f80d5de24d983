"""A run that is resumed with another setting is refused, unless that setting decides nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from exams.soak import small
from exams.suite import Case, Suite, defined_in
from qlora_core.errors import BadInput, QloraError, TrainingStopped
from qlora_core.training.identity import FREE
from qlora_core.training.progress import Silent
from qlora_core.training.runs import RECORD
from qlora_core.training.schema import TrainSettings
from qlora_core.training.train import train

BEFORE: dict[str, Any] = {
    "eval_split": 0.25, "eval_every": 3, "early_stop": 9, "final_adapter": "last",
    "columns": {"question": "user", "answer": "assistant"},
}  # fmt: skip
"""What the resumed run was started with: values that can be changed one by one."""
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


class Ears(Silent):
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        """Remember it."""
        self.heard.append(text)


class Stage:
    """A run that was stopped half-way and one that is finished, to be resumed with changes."""

    def __init__(self, bench: small.Bench) -> None:
        self.bench = bench
        self.settings = bench.settings("run", **BEFORE)
        straight = bench.settings("straight", **BEFORE)
        small.run(straight)
        self.expected = small.trace(straight.output)
        with contextlib.suppress(TrainingStopped):
            small.run(self.settings, small.Stopper(4))
        self.kept = {
            "stopped": shutil.copytree(self.settings.output, bench.folder / "kept stopped"),
            "finished": shutil.copytree(straight.output, bench.folder / "kept finished"),
        }

    def tried(self, name: str) -> Case:
        """The case of one change."""
        return self._deciding(name) if name in DECIDING else self._harmless(name)

    def every_key(self) -> Case:
        """Whether there is a case for every key that a run records."""
        keys = set(json.loads((self.kept["stopped"] / RECORD).read_text("utf-8"))["identity"])
        tried = {key for key, _ in DECIDING.values()}
        missing = keys - tried - {"compute_dtype", "architecture"}  # they come with another key
        free = FREE - {key for key, _ in HARMLESS.values()}
        missing |= free - {"data", "output", "resume", "allow_change", "eval_data"}
        return Case("every recorded key", not missing, f"no case for {missing}")

    def _changed(self, state: str, change: Change) -> TrainSettings:
        """A fresh copy of a run, and the settings to resume it with."""
        output = Path(self.settings.output)
        shutil.rmtree(output)
        shutil.copytree(self.kept[state], output)
        values = change(self.bench, output)
        return dataclasses.replace(self.settings, resume=True, **values)

    def _deciding(self, name: str) -> Case:
        """Refused with both values, during the run and after it; accepted when it is allowed."""
        key, change = DECIDING[name]
        record = Path(self.settings.output) / RECORD
        for state in self.kept:
            given = self._changed(state, change)
            before = record.read_bytes()
            refusal = _refusal(given)
            named = [line.strip() for line in refusal.splitlines()[1:]]
            said = next((line for line in named if line.startswith(f"{key}: was ")), "")
            if ", is " not in said:
                return Case(name, False, f"{state}: {key} is not named: {refusal}")
            if before != record.read_bytes():
                return Case(name, False, f"{state}: the refusal changed the record")
        return self._allowed(name, tuple(line.partition(":")[0] for line in named))

    def _allowed(self, name: str, keys: tuple[str, ...]) -> Case:
        """Accepted and recorded; or, where the adapter no longer fits, refused for that reason."""
        given = self._changed("stopped", DECIDING[name][1])
        try:
            run = train(dataclasses.replace(given, allow_change=keys), progress=Ears())
        except QloraError as reason:
            return Case(name, "adapter" in reason.problem, f"allowed, and then: {reason.problem}")
        noted = [n["message"] for n in run.record["notices"] if n["code"] == "allowed-change"]
        told = all(any(f"{key}: was " in note for note in noted) for key in keys)
        return Case(name, told and run.status == "finished", f"allowed: {noted}")

    def _harmless(self, name: str) -> Case:
        """Resumed to the same result, and said."""
        key, change = HARMLESS[name]
        given = self._changed("stopped", change)
        ears = Ears()
        train(given, progress=ears)
        different = small.difference(self.expected, small.trace(given.output))
        said = [line for line in ears.heard if line.startswith(f"{key}: was ")]
        passed = bool(said) and not different
        return Case(name, passed, f"{different or 'identical'}; said: {said}")


def _refusal(settings: TrainSettings) -> str:
    try:
        train(settings, progress=Ears())
    except BadInput as refusal:
        return refusal.problem
    return "resumed in silence"


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every change, in a random order: those that decide the result, and those that do not."""
    with small.bench() as bench:
        stage = Stage(bench)
        yield stage.every_key()
        names = [*DECIDING, *HARMLESS]
        random.Random(seed).shuffle(names)
        for name in names[: count - 1]:
            yield stage.tried(name)


SUITE = Suite(
    name="changes",
    promise="a changed setting, input or release is refused with both values, or decides nothing",
    cases=cases,
    full=1 + len(DECIDING) + len(HARMLESS),
    quick=10,
    baseline=defined_in("exams.soak.plain_faults", "changed"),
)
