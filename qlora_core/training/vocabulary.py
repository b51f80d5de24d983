"""Before training: does the base model know the tokens that it will be shown?"""

from __future__ import annotations

from qlora_core.data.vocabulary import check_vocabulary, untrained_tokens
from qlora_core.models.loader import LoadedModel
from qlora_core.training.runs import Run
from qlora_core.training.setup import Inputs


def check_tokens(run: Run, inputs: Inputs, loaded: LoadedModel) -> None:
    """Raise BadInput for tokens without embedding rows; note those that look untrained."""
    weight = loaded.model.get_input_embeddings().weight
    if weight.dim() != 2 or not weight.is_floating_point():
        return  # packed: its rows cannot be told
    check_vocabulary(inputs.tokenizer, weight.shape[0])
    policy = inputs.detection.architecture.tokenizer
    untrained = untrained_tokens(inputs.tokenizer, weight.detach(), policy)
    if untrained:
        run.note(
            "untrained-tokens",
            f"the chat template writes {', '.join(untrained)}, which the base model never trained",
            "take the instructed checkpoint, or train without a chat template's tokens: remove "
            "the template from the tokenizer, and the family's plain prompt is used",
        )
