"""Prompt formats in common use: to train a base model with, and to name a chat template by.

Where an assistant's turn has no end of its own, the last one gets the EOS token in training.
"""

from qlora_core import PromptFormat, hookimpl

FORMATS = (
    PromptFormat(
        name="chatml",
        start="",
        system="<|im_start|>system\n{content}<|im_end|>\n",
        user="<|im_start|>user\n{content}<|im_end|>\n",
        assistant="<|im_start|>assistant\n{content}<|im_end|>\n",
    ),
    PromptFormat(
        name="alpaca",
        start=(
            "{bos}Below is an instruction that describes a task. Write a response that "
            "appropriately completes the request.\n\n"
        ),
        system="{content}\n\n",
        user="### Instruction:\n{content}\n\n",
        assistant="### Response:\n{content}{eos}\n\n",
    ),
    PromptFormat(
        name="vicuna-lines",
        system="{content}\n\n",
        user="USER: {content}\n",
        assistant="ASSISTANT: {content}{eos}\n",
    ),
    PromptFormat(
        name="vicuna",
        system="{content} ",
        user="USER: {content} ",
        assistant="ASSISTANT: {content}{eos}",
    ),
    PromptFormat(
        name="zephyr",
        start="",
        system="<|system|>\n{content}{eos}\n",
        user="<|user|>\n{content}{eos}\n",
        assistant="<|assistant|>\n{content}{eos}\n",
    ),
    PromptFormat(
        name="llama-2",
        start="",
        user="{bos}[INST] {content} [/INST]",
        system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n{content}",
        assistant=" {content} {eos}",
    ),
    PromptFormat(
        name="llama-3",
        system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{content}<|eot_id|>",
    ),
    PromptFormat(name="mistral-v1", user=" [INST] {content} [/INST]", assistant=" {content}{eos}"),
    PromptFormat(
        name="mistral-v1-unspaced", user="[INST] {content} [/INST]", assistant="{content}{eos} "
    ),
    PromptFormat(name="mistral-v3", user="[INST] {content}[/INST]", assistant=" {content}{eos}"),
    PromptFormat(
        name="mistral-v3-tekken", user="[INST]{content}[/INST]", assistant="{content}{eos}"
    ),
    PromptFormat(
        name="mistral-v7",
        system="[SYSTEM_PROMPT] {content}[/SYSTEM_PROMPT]",
        user="[INST] {content}[/INST]",
        assistant=" {content}{eos}",
    ),
    PromptFormat(
        name="mistral-v7-tekken",
        system="[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]",
        user="[INST]{content}[/INST]",
        assistant="{content}{eos}",
    ),
    PromptFormat(
        name="gemma",
        user="<start_of_turn>user\n{content}<end_of_turn>\n",
        assistant="<start_of_turn>model\n{content}<end_of_turn>\n",
    ),
    PromptFormat(
        name="phi-3",
        start="",
        system="<|system|>\n{content}<|end|>\n",
        user="<|user|>\n{content}<|end|>\n",
        assistant="<|assistant|>\n{content}<|end|>\n",
    ),
    PromptFormat(
        name="phi-4-mini",
        start="",
        system="<|system|>{content}<|end|>",
        user="<|user|>{content}<|end|>",
        assistant="<|assistant|>{content}<|end|>",
    ),
    PromptFormat(
        name="phi-4",
        start="",
        system="<|im_start|>system<|im_sep|>{content}<|im_end|>",
        user="<|im_start|>user<|im_sep|>{content}<|im_end|>",
        assistant="<|im_start|>assistant<|im_sep|>{content}<|im_end|>",
    ),
    PromptFormat(
        name="falcon",
        start="",
        system="{content}\n\n",
        user="User: {content}\n\n",
        assistant="Assistant: {content}{eos}\n\n",
    ),
    PromptFormat(
        name="falcon-3",
        start="",
        system="<|system|>\n{content}\n",
        user="<|user|>\n{content}\n",
        assistant="<|assistant|>\n{content}{eos}\n",
    ),
    PromptFormat(
        name="tulu",
        system="<|system|>\n{content}\n",
        user="<|user|>\n{content}\n",
        assistant="<|assistant|>\n{content}{eos}\n",
    ),
    PromptFormat(
        name="deepseek",
        system="{content}\n\n",
        user="User: {content}\n\n",
        assistant="Assistant: {content}{eos}",
    ),
    PromptFormat(
        name="deepseek-v3",
        system="{content}",
        user="<｜User｜>{content}",
        assistant="<｜Assistant｜>{content}{eos}",
    ),
    PromptFormat(
        name="deepseek-coder",
        system="{content}",
        user="### Instruction:\n{content}\n",
        assistant="### Response:\n{content}\n<|EOT|>\n",
    ),
    PromptFormat(
        name="command-r",
        system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        assistant="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
    ),
    PromptFormat(
        name="granite",
        start="",
        system="<|start_of_role|>system<|end_of_role|>{content}<|end_of_text|>\n",
        user="<|start_of_role|>user<|end_of_role|>{content}<|end_of_text|>\n",
        assistant="<|start_of_role|>assistant<|end_of_role|>{content}<|end_of_text|>\n",
    ),
    PromptFormat(
        name="glm-4",
        start="[gMASK]<sop>",
        system="<|system|>\n{content}",
        user="<|user|>\n{content}",
        assistant="<|assistant|>\n{content}",
    ),
    PromptFormat(
        name="glm-edge",
        start="",
        system="<|system|>\n{content}",
        user="<|user|>\n{content}",
        assistant="<|assistant|>\n{content}",
    ),
    PromptFormat(
        name="chatglm-3",
        start="[gMASK]sop",
        system="<|system|>\n {content}",
        user="<|user|>\n {content}",
        assistant="<|assistant|>\n {content}",
    ),
    PromptFormat(
        name="openchat",
        system="{content}<|end_of_turn|>",
        user="GPT4 Correct User: {content}<|end_of_turn|>",
        assistant="GPT4 Correct Assistant: {content}<|end_of_turn|>",
    ),
    PromptFormat(
        name="solar",
        start="",
        system="### System:\n{content}\n\n",
        user="### User:\n{content}\n\n",
        assistant="### Assistant:\n{content}",
    ),
)


@hookimpl
def qlora_prompt_formats() -> tuple[PromptFormat, ...]:
    """Provide the formats."""
    return FORMATS
