"""What stands in the hostile folders: one small writer for each."""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exams.soak.traps import canary

Writer = Callable[[Path], object]
LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip
MEGABYTE = 2**20


def raw(content: bytes, name: str = "config.json") -> Writer:
    """A file with these very bytes."""
    return lambda folder: (folder / name).write_bytes(content)


def config(**changes: Any) -> Writer:
    """A small sound config with these values in place of its own."""
    return raw(json.dumps({**LLAMA, **changes}).encode())


def beside(name: str, content: bytes) -> Writer:
    """A sound config with another file beside it."""
    return _both(config(), raw(content, name))


def link(target: str, name: str = "config.json") -> Writer:
    """A link in place of a file."""
    return lambda folder: (folder / name).symlink_to(target)


def special(make: Callable[[str], Any], name: str = "config.json") -> Writer:
    """A pipe, a socket or a folder where a file belongs."""
    return lambda folder: make(str(folder / name))


def _both(*writers: Writer) -> Writer:
    def write(folder: Path) -> None:
        for writer in writers:
            writer(folder)

    return write


def _sparse(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(100 * MEGABYTE)


def _socket(path: str) -> None:
    place = os.getcwd()
    os.chdir(Path(path).parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(Path(path).name)
    finally:
        os.chdir(place)


def _remote(folder: Path, *, model_type: str, entry: str = "evil.Evil") -> None:
    """Python code of the folder's own: it leaves a canary when it is imported."""
    code = canary(folder)[1] + "\nclass Evil: pass\n"
    for name in ("evil.py", "__init__.py", "configuration_evil.py", "tokenization_evil.py"):
        (folder / name).write_text(code, encoding="utf-8")
    kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    auto_map = dict.fromkeys(kinds, entry)
    values = {**LLAMA, "model_type": model_type, "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    settings = {"auto_map": {"AutoTokenizer": [entry, None]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _foreign_blobs(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}-other" / "blobs"
    outside.mkdir(parents=True)
    (outside / "secret").write_text(json.dumps(LLAMA), encoding="utf-8")
    (folder / "config.json").symlink_to(outside / "secret")


def _pickles(folder: Path) -> None:
    config()(folder)
    code = canary(folder)[1]
    payload = b"cbuiltins\nexec\n(V" + code.encode() + b"\ntR."
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin"):
        (folder / name).write_bytes(payload)


def _nested(depth: int) -> dict[str, Any]:
    return functools.reduce(lambda inner, _: {"a": inner}, range(depth), {})


def _twice(number: int) -> bytes:
    keys = ",".join(f'"k{n}":0' for n in range(number))
    return b"{" + keys.encode() + b',"z":1,"z":2}'


HOSTILE_TEMPLATE = (
    b"{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
)

FOLDERS: dict[str, Writer] = {
    # what is no config
    "an empty file": raw(b""),
    "no file at all": lambda _: None,
    "text that is no JSON": raw(b"model_type: llama"),
    "a list": raw(b"[]"),
    "a string": raw(b'"llama"'),
    "a number": raw(b"1e9"),
    "null": raw(b"null"),
    "UTF-16": raw(json.dumps(LLAMA).encode("utf-16")),
    "bytes that are not UTF-8": raw(b'{"model_type": "\xff\xfe\xfa"}'),
    "NUL bytes": raw(b'{"model_type": "ll\x00ama"}'),
    "a byte order mark": raw(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode()),
    "half a surrogate": config(model_type="\ud800", architectures=["\udfff"]),
    "control characters": config(model_type="\x1b]0;title\x07\x1b[2J", _name_or_path="\x9b2J"),
    # size and depth
    "100 MB": _sparse,
    "4 MiB and one byte": raw(b" " * (4 * MEGABYTE + 1)),
    "a million empty lists": raw(b'{"a": [' + b"[]," * 1_000_000 + b"[]]}"),
    "100,000 brackets": raw(b"[" * 100_000),
    "900 objects deep": raw(json.dumps({**LLAMA, "a": _nested(900)}).encode()),
    "65 objects deep": raw(json.dumps({**LLAMA, "a": _nested(65)}).encode()),
    "a type of 4 MB": config(model_type="l" * 4_000_000),
    "90,000 keys, one of them twice": raw(_twice(90_000)),
    "400,000 keys": raw(_twice(400_000)),
    "a key twice": raw(b'{"model_type": "llama", "model_type": "falcon"}'),
    # numbers
    "NaN": raw(b'{"model_type": "llama", "hidden_size": NaN}'),
    "infinite layers": raw(b'{"model_type": "llama", "num_hidden_layers": Infinity}'),
    "NaN as transformers writes it": config(rms_norm_eps={"__float__": "NaN"}),
    "a number of 5,000 digits": raw(b'{"model_type": "llama", "a": ' + b"9" * 5000 + b"}"),
    "a number past all floats": raw(b'{"model_type": "llama", "hidden_size": 1e400}'),
    "1e9 layers": config(num_hidden_layers=10**9),
    "1e6 layers": config(num_hidden_layers=10**6),
    "-5 layers": config(num_hidden_layers=-5),
    "layers as text": config(num_hidden_layers="2; import os"),
    "1e9 layers of the text model": raw(
        json.dumps(
            {
                "model_type": "gemma3",
                "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 10**9},
            }
        ).encode()
    ),
    "a pattern of 3 million layers": raw(
        json.dumps(
            {"model_type": "nemotron_h", "hybrid_override_pattern": "M" * 3_000_000}
        ).encode()
    ),
    "a list of 300,000 layers": config(num_hidden_layers=300_000, layer_types=["a"] * 300_000),
    "hidden size 1e12": config(hidden_size=10**12),
    "hidden size -64": config(hidden_size=-64),
    "vocabulary of 1e15": config(vocab_size=10**15),
    "50 million labels": config(num_labels=50_000_000),
    "no heads": config(num_attention_heads=0),
    "1e9 heads": config(num_attention_heads=10**9),
    "1e12 experts": raw(
        json.dumps({"model_type": "mixtral", "num_local_experts": 10**12}).encode()
    ),
    "experts times layers": raw(
        json.dumps(
            {"model_type": "phimoe", "num_local_experts": 10**6, "num_hidden_layers": 1000}
        ).encode()
    ),
    "texts where numbers belong": config(
        **{key: "9" * 9 for key, value in LLAMA.items() if isinstance(value, int)}
    ),
    "lists where numbers belong": config(
        **{key: [1, [2]] for key, value in LLAMA.items() if isinstance(value, int)}
    ),
    # values of another kind
    "a type that is a number": config(model_type=7),
    "a type that is a list": config(model_type=["llama"]),
    "classes that are a number": config(architectures=5),
    "classes that are objects": config(architectures=[{"a": 1}, None, 3]),
    "a text model that is a list": config(text_config=[1, 2]),
    "a text model that is its own outside": config(text_config={**LLAMA, "text_config": LLAMA}),
    "quantization settings that are text": config(quantization_config="bitsandbytes"),
    "quantization settings of junk": config(
        quantization_config={"quant_method": {"x": 1}, "load_in_4bit": "yes", "bits": [4]}
    ),
    "scaling settings of junk": config(rope_scaling={"type": "dynamic", "factor": "1e400"}),
    "a dtype that is a path": config(torch_dtype="../../os", dtype={"a": "system"}),
    # files that are none
    "a link to the password file": link("/etc/passwd"),
    "a link to itself": link("config.json"),
    "a link to nothing": link("nowhere.json"),
    "a link to an endless device": link("/dev/zero"),
    "a link into the blobs of another cache": _foreign_blobs,
    "a pipe": special(os.mkfifo),
    "a socket": special(_socket),
    "a folder": special(os.mkdir),
    # code
    "code of its own, a known type": functools.partial(_remote, model_type="llama"),
    "code of its own, an unknown type": functools.partial(_remote, model_type="evil"),
    "code above the folder": functools.partial(
        _remote, model_type="evil", entry="../evil--evil.Evil"
    ),
    "code from the Hub": functools.partial(
        _remote, model_type="evil", entry="evil-owner/evil--evil.Evil"
    ),
    "attention from the Hub": config(attn_implementation="owner/evil-kernel"),
    "attention from the Hub, inside": config(
        text_config={"model_type": "llama", "_attn_implementation": "owner/evil"}
    ),
    "experts from the Hub": config(experts_implementation="owner/evil-kernel"),
    "pickles": _pickles,
    # the tokenizer's files
    "tokenizer settings that are a pipe": _both(
        config(), special(os.mkfifo, "tokenizer_config.json")
    ),
    "tokenizer settings of 4 MB": beside(
        "tokenizer_config.json", b'{"a": "' + b"x" * (4 * MEGABYTE) + b'"}'
    ),
    "tokenizer settings of junk": beside(
        "tokenizer_config.json",
        b'{"eos_token": 5, "bos_token": {"content": []}, "added_tokens_decoder": [1],'
        b' "chat_template": [1, {"name": 3}, {"name": "default", "template": 9}]}',
    ),
    "a template that is a pipe": _both(config(), special(os.mkfifo, "chat_template.jinja")),
    "a template that is the password file": _both(
        config(), link("/etc/passwd", "chat_template.jinja")
    ),
    "a template that is not UTF-8": beside("chat_template.jinja", b"\xff\xfe\xfa"),
    "a template without end": beside("chat_template.jinja", HOSTILE_TEMPLATE),
    "a tokenizer of junk": beside("tokenizer.json", b'{"model": {"type": "BPE"}, "a": [1e999]}'),
    "a tokenizer that is a pipe": _both(config(), special(os.mkfifo, "tokenizer.json")),
}
"""By name. Each has 0.3 s."""
