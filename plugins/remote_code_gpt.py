"""GPT-like families whose classes come with their checkpoints: names from published code."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

qwen_v1 = Architecture(
    name="qwen_v1",
    model_types=("qwen",),
    class_names=("QWenLMHeadModel",),
    targets=LoraTargets(
        attention=("attn.c_attn", "attn.c_proj"), mlp=("mlp.w1", "mlp.w2", "mlp.c_proj")
    ),
    layout=Layout(
        layers="transformer.h", final_norm="transformer.ln_f", embeddings="transformer.wte"
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",), bos="forbidden", turn_end="<|im_end|>", stop=("<|endoftext|>",)
    ),
    example={
        "model_type": "qwen",
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    },
    source="the checkpoints' modeling_qwen.py; Bai et al. 2023 (arXiv:2309.16609)",
)
chatglm = Architecture(
    name="chatglm",
    model_types=("chatglm",),
    class_names=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    targets=LoraTargets(
        attention=("self_attention.query_key_value", "self_attention.dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
    ),
    layout=Layout(
        layers="transformer.encoder.layers",
        final_norm="transformer.encoder.final_layernorm",
        embeddings="transformer.embedding.word_embeddings",
        head=("transformer.output_layer",),
    ),
    example={
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    },
    source="the modeling_chatglm.py of ChatGLM 2, 3 and GLM-4 checkpoints; GLM Team 2024 "
    "(arXiv:2406.12793)",
)
exaone = Architecture(
    name="exaone",
    model_types=("exaone",),
    class_names=("ExaoneForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        mlp=("mlp.c_fc_0", "mlp.c_fc_1", "mlp.c_proj"),
    ),
    layout=qwen_v1.layout,
    tokenizer=TokenizerPolicy(pad=("[PAD]",), turn_end="[|endofturn|]"),
    example={
        "model_type": "exaone",
        "architectures": ["ExaoneForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_exaone.ExaoneForCausalLM"},
    },
    source="the checkpoints' modeling_exaone.py; LG AI Research 2024 (arXiv:2408.03541)",
)
telechat = Architecture(
    name="telechat",
    model_types=("telechat",),
    class_names=("TelechatForCausalLM", "TeleChatForCausalLM"),
    targets=LoraTargets(
        attention=("self_attention.query", "self_attention.key_value", "self_attention.dense"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    layout=replace(qwen_v1.layout, embeddings="transformer.word_embeddings"),
    example={
        "model_type": "telechat",
        "architectures": ["TelechatForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_telechat.TelechatForCausalLM"},
    },
    source="the checkpoints' modeling_telechat.py; Wang et al. 2024 (arXiv:2401.03804)",
)
moss = Architecture(
    name="moss",
    model_types=("moss",),
    class_names=("MossForCausalLM",),
    targets=LoraTargets(attention=("qkv_proj", "out_proj"), mlp=("fc_in", "fc_out")),
    layout=qwen_v1.layout,
    example={
        "model_type": "moss",
        "architectures": ["MossForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_moss.MossForCausalLM"},
    },
    source="the checkpoints' modeling_moss.py; Fudan University 2023",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide the first Qwen, ChatGLM, EXAONE 3, TeleChat and MOSS."""
    return [qwen_v1, chatglm, exaone, telechat, moss]
