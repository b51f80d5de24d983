"""Prompt formats of one model family each, to name chat templates by.

Sources: the chat templates that the models ship; see ``formats.py`` for those in common use.
"""

from qlora_core import PromptFormat, hookimpl


def _alike(
    name: str,
    turn: str,
    *,
    roles: tuple[str, str, str] = ("system", "user", "assistant"),
    start: str = "{bos}",
) -> PromptFormat:
    """A format whose turns differ in the role's name alone."""
    system, user, assistant = (turn.replace("{role}", role) for role in roles)
    return PromptFormat(name=name, start=start, system=system, user=user, assistant=assistant)


FORMATS = (
    PromptFormat(
        name="alpaca-input",
        start="{bos}\n",
        system="### Instruction:\n{content}\n\n",
        user="### Input:\n{content}\n\n",
        assistant="### Response:\n{content}{eos}\n\n",
    ),
    _alike("apertus", "<|{role}_start|>{content}<|{role}_end|>"),
    PromptFormat(
        name="apriel",
        system="<|begin_system|>\n{content}\n",
        user="<|begin_user|>\n{content}\n",
        assistant="<|begin_assistant|>\n{content}\n<|end|>\n",
    ),
    _alike("apriel-1.5", "<|{role}|>\n{content}\n<|end|>\n"),
    PromptFormat(
        name="baichuan",
        start="",
        system="{content}",
        user="<reserved_106>{content}",
        assistant="<reserved_107>{content}{eos}",
    ),
    _alike(
        "bailing", "<role>{role}</role>{content}", roles=("SYSTEM", "HUMAN", "ASSISTANT"), start=""
    ),
    _alike("codellama-70b", "Source: {role}\n\n {content} <step> "),
    PromptFormat(
        name="command-r7b",
        system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        assistant=(
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
            "<|START_RESPONSE|>{content}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
        ),
    ),
    _alike(
        "cohere-text",
        "<|START_OF_TURN_TOKEN|><|{role}_TOKEN|><|START_TEXT|>{content}<|END_TEXT|><|END_OF_TURN_TOKEN|>",
        roles=("SYSTEM", "USER", "CHATBOT"),
    ),
    PromptFormat(
        name="deepseek-v3.1",
        system="{content}",
        user="<｜User｜>{content}",
        assistant="<｜Assistant｜></think>{content}{eos}",
    ),
    _alike("dialogpt", "{content}{eos}", start=""),
    PromptFormat(
        name="ernie-4.5",
        start="<|begin_of_sentence|>",
        system="{content}\n",
        user="User: {content}\n",
        assistant="Assistant: {content}<|end_of_sentence|>",
    ),
    PromptFormat(
        name="exaone-3",
        start="",
        system="[|system|]{content}[|endofturn|]\n",
        user="[|user|]{content}\n",
        assistant="[|assistant|]{content}[|endofturn|]\n",
    ),
    _alike("exaone-4", "[|{role}|]\n{content}[|endofturn|]\n", start=""),
    _alike("gemma-4", "<|turn>{role}\n{content}<turn|>\n", roles=("system", "user", "model")),
    _alike("gigachat-3", "{role}<|role_sep|>\n{content}<|message_sep|>\n\n"),
    PromptFormat(
        name="glm-4.7",
        start="[gMASK]<sop>",
        system="<|system|>{content}",
        user="<|user|>{content}",
        assistant="<|assistant|></think>{content}",
    ),
    PromptFormat(
        name="falcon-rw",
        start="",
        system="[SYS] {content} ",
        user="[INST] {content}",
        assistant=" [RESP] {content}{eos}",
    ),
    PromptFormat(
        name="functionary-2",
        start="",
        system="<|from|>system\n<|recipient|>all\n<|content|>{content}\n",
        user="<|from|>user\n<|recipient|>all\n<|content|>{content}\n",
        assistant="<|from|>assistant\n<|recipient|>all\n<|content|>{content}<|stop|>\n",
    ),
    PromptFormat(
        name="gpt-oss",
        start="",
        system="<|start|>developer<|message|># Instructions\n\n{content}\n\n<|end|>",
        user="<|start|>user<|message|>{content}<|end|>",
        assistant="<|start|>assistant<|channel|>final<|message|>{content}<|end|>",
    ),
    _alike("gpt-sw3", "{role}: {content}{bos}", roles=("Bot", "User", "Bot"), start="{eos}{bos}"),
    _alike(
        "grok-2",
        "{role}: {content}<|separator|>\n\n",
        roles=("System", "Human", "Assistant"),
        start="",
    ),
    PromptFormat(
        name="guanaco",
        system="{content}\n",
        user="### Human: {content}\n",
        assistant="### Assistant: {content}{eos}\n",
    ),
    PromptFormat(
        name="hunyuan-dense",
        start="<｜hy_begin▁of▁sentence｜>",
        system="{content}<｜hy_place▁holder▁no▁3｜>",
        user="<｜hy_User｜>{content}",
        assistant="<｜hy_Assistant｜>{content}<｜hy_place▁holder▁no▁2｜>",
    ),
    PromptFormat(
        name="dots-1",
        start="",
        system="<|system|>{content}<|endofsystem|>",
        user="<|userprompt|>{content}<|endofuserprompt|>",
        assistant="<|response|>{content}<|endofresponse|>",
    ),
    PromptFormat(
        name="yandex",
        user=" Пользователь: {content}\n\n",
        assistant=" Ассистент: {content}\n\n",
    ),
    _alike(
        "h2o-danube", "<|{role}|>{content}{eos}", roles=("system", "prompt", "answer"), start=""
    ),
    PromptFormat(
        name="human-assistant",
        start="",
        system="{content}",
        user="\n\nHuman: {content}{eos}",
        assistant="\n\nAssistant: {content}{eos}",
    ),
    PromptFormat(
        name="hunyuan-moe",
        start="",
        system="<|startoftext|>{content}<|extra_4|>",
        user="<|startoftext|>{content}<|extra_0|>",
        assistant="{content}<|eos|>",
    ),
    PromptFormat(
        name="idefics-3",
        start="<|im_start|>",
        system="System: {content}<end_of_utterance>\n",
        user="User: {content}<end_of_utterance>\n",
        assistant="Assistant: {content}<end_of_utterance>\n",
    ),
    _alike("jamba-1.5", "<|bom|><|{role}|> {content}<|eom|>"),
    _alike("kimi-k2", "<|im_{role}|>{role}<|im_middle|>{content}<|im_end|>", start=""),
    _alike("llama-4", "<|header_start|>{role}<|header_end|>\n\n{content}<|eot|>"),
    PromptFormat(
        name="magicoder",
        start=(
            "{bos}You are an exceptionally intelligent coding assistant that consistently "
            "delivers accurate and reliable responses to user instructions.\n\n"
        ),
        user="@@ Instruction\n{content}\n\n",
        assistant="@@ Response\n{content}{eos}\n\n",
    ),
    _alike("megrez", "<|role_start|>{role}<|role_end|>{content}<|turn_end|>", start=""),
    PromptFormat(
        name="minicpm",
        start="",
        system="{content}",
        user="<用户>{content}",
        assistant="<AI>{content}",
    ),
    _alike("monarch", "{bos}{role}\n{content}{eos}\n", start=""),
    PromptFormat(
        name="nemotron-4",
        start="",
        system="<extra_id_0>System\n{content}\n\n",
        user="<extra_id_1>User\n{content}\n",
        assistant="<extra_id_1>Assistant\n{content}\n",
    ),
    _alike(
        "openchat-3.6",
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        roles=("System", "GPT4 Correct User", "GPT4 Correct Assistant"),
    ),
    _alike("openbuddy", "<|role|>{role}<|says|>{content}<|end|>\n", start=""),
    PromptFormat(
        name="olmo",
        start="{eos}",
        system="<|system|>\n{content}\n",
        user="<|user|>\n{content}\n",
        assistant="<|assistant|>\n{content}{eos}\n",
    ),
    PromptFormat(
        name="orion",
        user="Human: {content}\n\n",
        assistant="Assistant: {eos}{content}{eos}",
    ),
    PromptFormat(
        name="reka",
        start="",
        system="system: {content}\n\n<sep>",
        user="human: {content}<sep>",
        assistant="assistant: {content}\n\n<sep>",
    ),
    _alike("rwkv-world", "{role}: {content}\n\n", roles=("System", "User", "Assistant"), start=""),
    _alike("seallm-2", "<|im_start|>{role}\n{content}{eos}"),
    _alike("seed-oss", "<seed:bos>{role}\n{content}<seed:eos>", start=""),
    PromptFormat(
        name="taiwan-llm",
        start="",
        system="{content}{eos}",
        user="USER: {content}{eos}",
        assistant="ASSISTANT: {content}{eos}",
    ),
    _alike(
        "tenyx", "{role}:{content}{eos}\n", roles=("System", "User", "Assistant"), start="{bos} "
    ),
    _alike("untagged", "{content}\n\n "),
    PromptFormat(
        name="vicuna-orca",
        system="SYSTEM: {content}\n",
        user="USER: {content}\n",
        assistant="ASSISTANT: {content}{eos}\n",
    ),
    PromptFormat(
        name="vigogne",
        system="<|system|>: {content}\n",
        user="<|user|>: {content}\n",
        assistant="<|assistant|>: {content}{eos}\n",
    ),
)


@hookimpl
def qlora_prompt_formats() -> tuple[PromptFormat, ...]:
    """Provide the formats."""
    return FORMATS
