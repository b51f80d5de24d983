"""Older names, and types whose code comes with the checkpoint: found without running that code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exams.suite import Case, Suite

LLAMA = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
NEOX = "query_key_value dense dense_h_to_4h dense_4h_to_h"
NAMES = {
    **dict.fromkeys(("RefinedWeb", "RefinedWebModel", "refinedWeb", "refinedWebModel"), NEOX),
    **dict.fromkeys(
        (
            "Yi", "yi", "aquila", "brumby", "deci", "dream", "instella", "internlm", "longllama",
            "marin", "mimo", "minicpm", "mobilellm", "nemotron-nas", "orion", "skywork",
            "stablelm_epoch", "xverse",
        ),
        LLAMA,
    ),
    "baichuan": "W_pack o_proj gate_proj up_proj down_proj",
    "chatglm": NEOX,
    "deepseek": LLAMA,
    "exaone": "q_proj k_proj v_proj out_proj c_fc_0 c_fc_1 c_proj",
    "grinmoe": "q_proj k_proj v_proj o_proj",
    "internlm2": "wqkv wo w1 w2 w3",
    "kimi_k2": "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj gate_proj up_proj down_proj",
    "moss": "qkv_proj out_proj fc_in fc_out",
    "qwen": "c_attn c_proj w1 w2",
    "telechat": "query key_value dense gate_proj up_proj down_proj",
}  # fmt: skip
"""Model type -> its linear layers by last name, as GPTQModel (f4c327a1), AutoGPTQ (9f7d3707) and
ms-swift list them; routed experts, which are linear layers in that code, are not meant."""
_TRAP = "import pathlib\npathlib.Path(__file__).with_name('it_ran').touch()\n"
_DETECT = """
import json, sys
from qlora_core import detect
found = {}
for folder in sys.argv[1:]:
    try:
        answer = detect(folder)
        found[folder] = [answer.fit.name, answer.targets.target_modules]
    except Exception as error:
        found[folder] = ["", f"{type(error).__name__}: {error}"]
print(json.dumps([found, sorted({"torch", "transformers"} & set(sys.modules))]))
"""


def cases(count: int, seed: int) -> Iterator[Case]:  # noqa: ARG001  # few enough to run them all
    """Every name, as the folder of a checkpoint that brings code which must not run."""
    with TemporaryDirectory() as root:
        folders = {name: _folder(Path(root) / f"m-{name}", name) for name in NAMES}
        asked = subprocess.run(
            [sys.executable, "-c", _DETECT, *map(str, folders.values())],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found, heavy = json.loads(asked.stdout)
        yield Case("no heavy module is imported", not heavy, ", ".join(heavy))
        for name, folder in folders.items():
            fit, targets = found[str(folder)]
            leaves = {target.rpartition(".")[2] for target in targets}
            ran = (folder / "it_ran").exists()
            right = fit in ("MODEL_TYPE", "REFINED") and leaves == set(NAMES[name].split())
            yield Case(name, right and not ran, f"{fit} {targets}{', and its code ran' * ran}")


def _folder(folder: Path, model_type: str) -> Path:
    folder.mkdir()
    code = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": ["OwnForCausalLM"],
        "auto_map": code,
    }
    if model_type == "kimi_k2":
        config |= {"q_lora_rank": 1536}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(_TRAP)
    return folder


SUITE = Suite(
    name="legacy",
    promise="older and remote-code names resolve to other projects' layer names; no code runs",
    cases=cases,
    full=len(NAMES) + 1,
    quick=len(NAMES) + 1,
)
