"""Dense decoders of many makers whose layers bear the names of Llama's."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

exaone4 = Architecture(
    name="exaone4",
    model_types=("exaone4",),
    class_names=("Exaone4ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    tokenizer=TokenizerPolicy(
        pad=("[PAD]",),
        turn_end="[|endofturn|]",
    ),
    example={
        "model_type": "exaone4",
        "architectures": ["Exaone4ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "vocab_size": 512,
    },
    source="transformers, models/exaone4/modeling_exaone4.py; LG AI Research 2025 "
    "(arXiv:2507.11407)",
)
seed_oss = Architecture(
    name="seed_oss",
    model_types=("seed_oss",),
    class_names=("SeedOssForCausalLM",),
    targets=exaone4.targets,
    tokenizer=TokenizerPolicy(
        pad=("<seed:pad>",),
    ),
    example={
        **exaone4.example,
        "model_type": "seed_oss",
        "architectures": ["SeedOssForCausalLM"],
        "head_dim": 16,
        "num_key_value_heads": 2,
    },
    source="transformers, models/seed_oss/modeling_seed_oss.py; ByteDance Seed 2025",
)
smollm3 = Architecture(
    name="smollm3",
    model_types=("smollm3",),
    class_names=("SmolLM3ForCausalLM",),
    targets=exaone4.targets,
    tokenizer=TokenizerPolicy(
        turn_end="<|im_end|>",
    ),
    example={
        **exaone4.example,
        "model_type": "smollm3",
        "architectures": ["SmolLM3ForCausalLM"],
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    },
    source="transformers, models/smollm3/modeling_smollm3.py; Hugging Face 2025",
)
stablelm = Architecture(
    name="stablelm",
    model_types=("stablelm", "stablelm_epoch"),
    class_names=("StableLmForCausalLM",),
    targets=exaone4.targets,
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
    ),
    example={
        **exaone4.example,
        "model_type": "stablelm",
        "architectures": ["StableLmForCausalLM"],
    },
    source="transformers, models/stablelm/modeling_stablelm.py; Bellagente et al. 2024 "
    "(arXiv:2402.17834)",
)
llama_like = Architecture(
    name="llama_like",
    model_types=(
        "bitnet",
        "cwm",
        "diffllama",
        "ernie4_5",
        "helium",
        "hunyuan_v1_dense",
        "hyperclovax",
        "internlm3",
        "iquestcoder",
        "Yi",
        "yi",
        "internlm",
        "xverse",
        "orion",
        "aquila",
        "skywork",
        "minicpm",
        "longllama",
        "instella",
        "marin",
        "brumby",
        "deci",
        "nemotron-nas",
        "dream",
        "mimo",
        "mobilellm",
    ),
    class_names=(
        "BitNetForCausalLM",
        "CwmForCausalLM",
        "DiffLlamaForCausalLM",
        "Ernie4_5ForCausalLM",
        "HeliumForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "HyperCLOVAXForCausalLM",
    ),
    targets=exaone4.targets,
    example={
        **exaone4.example,
        "model_type": "bitnet",
        "architectures": ["BitNetForCausalLM"],
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    source="transformers, models/bitnet, cwm, diffllama, ernie4_5, helium, "
    "hunyuan_v1_dense, hyperclovax, llama",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Dense decoders of many makers whose layers bear the names of Llama's."""
    return [exaone4, seed_oss, smollm3, stablelm, llama_like]
