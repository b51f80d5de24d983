"""Adapters, weights and checkpoints made to harm: each is refused in one message, nothing runs."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import qlora_base

from exams.soak.traps import canary, in_a_child, watch
from exams.suite import Case, Suite
from qlora_core.cli.main import main

SECONDS = 20.0
"""Of the processor, for a whole command: loading the small base and computing included."""
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Harm = Callable[[Path], object]


def config(**changes: Any) -> Harm:
    """Other values in the adapter's settings."""

    def harm(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps({**values, **changes}), encoding="utf-8")

    return harm


def raw(content: bytes, name: str = CONFIG) -> Harm:
    """A file with these bytes in place of the sound one."""
    return lambda folder: (folder / name).write_bytes(content)


def tensors(change: Callable[[dict[str, Any]], object]) -> Harm:
    """Other tensors in the adapter."""

    def harm(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        values = load_file(folder / ADAPTER)
        change(values)
        save_file(values, folder / ADAPTER, metadata={"format": "pt"})

    return harm


def _pickled(folder: Path, name: str = "adapter_model.bin") -> None:
    (folder / ADAPTER).unlink(missing_ok=True)
    (folder / name).write_bytes(b"cbuiltins\nexec\n(V" + canary(folder)[1].encode() + b"\ntR.")


def _nan(values: dict[str, Any]) -> None:
    values[min(values)][0, 0] = float("nan")


def _renamed(values: dict[str, Any]) -> None:
    values["base_model.model.os.system.lora_A.weight"] = values.pop(min(values))


def _vast(values: dict[str, Any]) -> None:
    name = min(values)
    values[name] = values[name].new_ones(50_000, 50)


def _header(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


BACKTRACK = "(" * 8 + "[a-z_.0-9]+" + ")+" * 8 + "!"
ADAPTERS: dict[str, Harm] = {
    "no JSON": raw(b"{"),
    "a list": raw(b"[]"),
    "NaN as alpha": raw(b'{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}'),
    "endless alpha": config(lora_alpha=float("inf")),
    "alpha as text": config(lora_alpha="16"),
    "rank 1e12": config(r=10**12),
    "rank 0": config(r=0),
    "rank -4": config(r=-4),
    "rank true": config(r=True),
    "rank as text": config(r="4"),
    "rank 1e12 for some layers": config(rank_pattern={"q_proj": 10**12}),
    "endless names of ranks": config(rank_pattern={BACKTRACK: 4}),
    "targets that never end": config(target_modules=BACKTRACK),
    "targets of many stars": config(target_modules=".*.*.*.*.*.*.*.*!"),
    "targets that are no expression": config(target_modules="(q_proj"),
    "targets that are a number": config(target_modules=5),
    "targets of objects": config(target_modules=[{"a": 1}]),
    "exclusions that never end": config(exclude_modules=BACKTRACK),
    "layers copied 1e9 times": config(layer_replication=[[0, 10**9]]),
    "classes of its own": config(
        auto_mapping={"base_model_class": "os", "parent_library": "subprocess"}
    ),
    "a parallel core of its own": config(
        megatron_config={"a": 1}, megatron_core="antigravity"
    ),
    "a start that changes the base": config(init_lora_weights="pissa_niter_1000000"),
    "another method": config(peft_type="PROMPT_TUNING"),
    "a method that is none": config(peft_type={"a": []}),
    "a base that is a link": config(base_model_name_or_path="https://127.0.0.1/evil"),
    "a base on the Hub": config(base_model_name_or_path="evil-owner/evil-model"),
    "a base that is a number": config(base_model_name_or_path=5),
    "modules to save that are none": config(modules_to_save=["../../os"]),
    "unknown keys": config(run_this="os.system", nested={"a": {"b": [1]}}),
    "dropout of 7": config(lora_dropout=7),
    "biases of its own": config(bias="exec"),
    "tokens that are texts": config(trainable_token_indices=["a"]),
    "NaN weights": tensors(_nan),
    "weights without a layer": tensors(_renamed),
    "weights of another shape": tensors(_vast),
    "a weight missing": tensors(lambda values: values.pop(min(values))),
    "a pickle": _pickled,
    "a cut file": lambda folder: (folder / ADAPTER).write_bytes(
        (folder / ADAPTER).read_bytes()[:-9]
    ),
    "an empty file": raw(b"", ADAPTER),
    "a header of 2^60 bytes": raw(_header(b"{}", 2**60), ADAPTER),
    "a nested header": raw(_header(b"[" * 90_000), ADAPTER),
    "a header of texts": raw(_header(b'{"a": {"data_offsets": ["0", "x"]}}'), ADAPTER),
}  # fmt: skip
READ = {"unknown keys", "modules to save that are none"}
"""What is used all the same: PEFT knows nothing of such keys, and such modules are not there."""


def index(*names: Any) -> Harm:
    """An index of weight files that names these."""
    weight_map = {f"w{number}": name for number, name in enumerate(names)}

    def harm(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    return harm


def _only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    _pickled(folder, "pytorch_model.bin")


WEIGHTS: dict[str, Harm] = {
    "an index that leaves the folder": index("../outside.safetensors"),
    "an index of absolute paths": index("/etc/passwd"),
    "an index of paths inside": index("sub/model.safetensors"),
    "an index of numbers": index(5, None),
    "an index of dots": index(".."),
    "an index of backslashes": index("..\\outside.safetensors"),
    "an index that is a list": lambda folder: (
        index("a")(folder), raw(b"[[]]", "model.safetensors.index.json")(folder)),
    "a nested index": lambda folder: (
        index("a")(folder),
        raw(b'{"weight_map": ' * 50_000, "model.safetensors.index.json")(folder)),
    "only pickles": _only_pickles,
    "a header of 2^60 bytes": raw(_header(b"{}", 2**60), "model.safetensors"),
    "a nested header": raw(_header(b'{"a":' * 30_000), "model.safetensors"),
    "a header of texts": raw(_header(b'{"a": {"data_offsets": ["0", "x"]}}'), "model.safetensors"),
    "a header of overlaps": raw(
        _header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
                b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}') + b"\0" * 4,
        "model.safetensors"),
    "a shape of 2^62": raw(
        _header(b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4],'
                b' "data_offsets": [0, 4]}}') + b"\0" * 4, "model.safetensors"),
    "a pointer": raw(b"version https://git-lfs.github.com/spec/v1\n", "model.safetensors"),
}  # fmt: skip


def cases(count: int, seed: int) -> Iterator[Case]:
    """Each adapter with generate, merge and verify; each base with generate and train."""
    del seed
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sound = _sound(place)
        base = str(qlora_base.MODEL)
        yield _commanded("a sound adapter, generate", sound, _generate(sound, base), (0,))
        for number, (what, harm) in enumerate(ADAPTERS.items()):
            folder = place / f"adapter-{number}"
            shutil.copytree(sound, folder)
            harm(folder)
            codes = (0, 2) if what in READ else (2,)
            without = (2,) if what.startswith("a base") else codes
            yield _commanded(f"{what}, generate", folder, _generate(folder), without)
            if count > len(ADAPTERS) + len(WEIGHTS):
                asked = [*_generate(folder, base)]
                yield _commanded(f"{what}, generate on a base", folder, asked, (0, 2))
                merge = ["merge", str(folder), "--output", str(folder / "merged"), "--no-check"]
                yield _commanded(f"{what}, merge", folder, merge, without)
                yield _commanded(f"{what}, verify", folder, ["verify", str(folder)], (0, 1, 2))
        for number, (what, harm) in enumerate(WEIGHTS.items()):
            folder = place / f"base-{number}"
            shutil.copytree(qlora_base.MODEL, folder)
            (place / "outside.safetensors").write_bytes(b"")
            harm(folder)
            ask = ["generate", "--model", str(folder), "--prompt", "hi", "--max-new-tokens", "1"]
            yield _commanded(f"{what}, generate", folder, ask, (2,))


def _sound(place: Path) -> Path:
    """An adapter on the embedded base, as PEFT saves it."""
    from qlora_core.models.adapters import attach
    from qlora_core.models.loader import load_model

    loaded = load_model(qlora_base.MODEL, quantize=None)
    wrapped = attach(loaded.model, architecture=loaded.detection.architecture, rank=4)
    wrapped.save_pretrained(place / "sound")
    return place / "sound"


def _generate(adapter: Path, base: str | None = None) -> list[str]:
    named = ["--model", base] if base else []
    return ["generate", "--adapter", str(adapter), *named, "--prompt", "hi",
            "--max-new-tokens", "1", "--quantize", "none"]  # fmt: skip


def _commanded(name: str, folder: Path, command: list[str], codes: tuple[int, ...]) -> Case:
    errors = io.StringIO()

    def run() -> int:
        with redirect_stdout(io.StringIO()), redirect_stderr(errors):
            return main(command)

    found = watch(run, patience=120)
    fault = found.fault(SECONDS)
    said = errors.getvalue()
    if not fault and found.result not in codes:
        fault = f"exit code {found.result}: {said[-200:]!r}"
    if not fault and found.result == 2 and said.count("error: ") != 1:
        fault = f"no single message: {said[-300:]!r}"
    if any(folder.rglob("*-was-run")):
        fault = "ran code"
    return Case(name, not fault, fault, {"seconds": found.seconds})


def plain(count: int, seed: int) -> Iterator[Case]:
    """Plain transformers and PEFT on the same files: is what is unsound refused at once?"""
    del count, seed
    code = (
        "import sys, transformers, peft\n"
        "m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "try:\n    sys.argv[2:] and peft.PeftModel.from_pretrained(m, sys.argv[2])\n"
        "except (OSError, ValueError, RuntimeError):\n    sys.exit(0)\n"
        "sys.exit('accepted')\n"
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sound = _sound(place)
        for number, (what, harm) in enumerate(ADAPTERS.items()):
            folder = place / f"adapter-{number}"
            shutil.copytree(sound, folder)
            harm(folder)
            arguments = ["-c", code, str(qlora_base.MODEL), str(folder)]
            yield in_a_child(f"{what}, PeftModel", arguments, seconds=30)


SUITE = Suite(
    "hostile-adapters", "unsound adapters and weights are refused in one message; nothing runs",
    cases, full=180, quick=20, baseline=plain,
)  # fmt: skip
