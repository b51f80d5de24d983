"""Descendants of GPT-2 and GPT-3 with layers of their own names."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

gpt_neo = Architecture(
    name="gpt_neo",
    model_types=("gpt_neo",),
    class_names=("GPTNeoForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        mlp=("c_fc", "c_proj"),
    ),
    layout=Layout(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        embeddings="transformer.wte",
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
    ),
    example={
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "attention_types": [[["global", "local"], 1]],
        "hidden_size": 64,
        "max_position_embeddings": 256,
        "num_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/gpt_neo/modeling_gpt_neo.py; Black et al. 2021",
)
gptj = Architecture(
    name="gptj",
    model_types=("gptj",),
    class_names=("GPTJForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        mlp=("fc_in", "fc_out"),
    ),
    layout=gpt_neo.layout,
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=gpt_neo.tokenizer,
    example={
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "rotary_dim": 8,
        "vocab_size": 512,
    },
    source="transformers, models/gptj/modeling_gptj.py; Wang and Komatsuzaki 2021",
)
codegen = Architecture(
    name="codegen",
    model_types=("codegen",),
    class_names=("CodeGenForCausalLM",),
    targets=LoraTargets(
        attention=("qkv_proj", "out_proj"),
        mlp=("fc_in", "fc_out"),
    ),
    layout=gpt_neo.layout,
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=gpt_neo.tokenizer,
    example={
        "model_type": "codegen",
        "architectures": ["CodeGenForCausalLM"],
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "rotary_dim": 8,
        "vocab_size": 512,
    },
    source="transformers, models/codegen/modeling_codegen.py; Nijkamp et al. 2022 "
    "(arXiv:2203.13474)",
)
gpt_bigcode = Architecture(
    name="gpt_bigcode",
    model_types=("gpt_bigcode",),
    class_names=("GPTBigCodeForCausalLM",),
    targets=LoraTargets(
        attention=("c_attn", "attn.c_proj"),
        mlp=("c_fc", "mlp.c_proj"),
    ),
    layout=gpt_neo.layout,
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=gpt_neo.tokenizer,
    example={
        "model_type": "gpt_bigcode",
        "architectures": ["GPTBigCodeForCausalLM"],
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 256,
        "vocab_size": 512,
    },
    source="transformers, models/gpt_bigcode/modeling_gpt_bigcode.py; Ben Allal et al. 2023 "
    "(arXiv:2301.03988)",
)
gpt_sw3 = Architecture(
    name="gpt_sw3",
    model_types=("gpt-sw3",),
    targets=gpt_bigcode.targets,
    layout=gpt_neo.layout,
    example={
        "model_type": "gpt-sw3",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "vocab_size": 512,
    },
    source="transformers, models/gpt2/modeling_gpt2.py; Ekgren et al. 2023 (arXiv:2305.12987)",
)
openai_gpt = Architecture(
    name="openai_gpt",
    model_types=("openai-gpt",),
    class_names=("OpenAIGPTLMHeadModel",),
    targets=gpt_bigcode.targets,
    layout=Layout(
        layers="transformer.h",
        embeddings="transformer.tokens_embed",
    ),
    example={
        "model_type": "openai-gpt",
        "architectures": ["OpenAIGPTLMHeadModel"],
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 256,
        "vocab_size": 512,
    },
    source="transformers, models/openai/modeling_openai.py; Radford et al. 2018",
)
ctrl = Architecture(
    name="ctrl",
    model_types=("ctrl",),
    class_names=("CTRLLMHeadModel",),
    targets=LoraTargets(
        attention=("Wq", "Wk", "Wv", "dense"),
        mlp=("ffn.0", "ffn.2"),
    ),
    layout=Layout(
        layers="transformer.h",
        final_norm="transformer.layernorm",
        embeddings="transformer.w",
    ),
    example={
        "model_type": "ctrl",
        "architectures": ["CTRLLMHeadModel"],
        "dff": 128,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "vocab_size": 512,
    },
    source="transformers, models/ctrl/modeling_ctrl.py; Keskar et al. 2019 (arXiv:1909.05858)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Descendants of GPT-2 and GPT-3 with layers of their own names."""
    return [gpt_neo, gptj, codegen, gpt_bigcode, gpt_sw3, openai_gpt, ctrl]
