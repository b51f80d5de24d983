"""A small base model of our own: a Llama-shaped decoder trained on text that this folder makes.

The package holds the weights (`MODEL`), the demo's chat rows (`DATA`) and all that made them.
Importing it loads neither torch nor transformers.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
DATA = Path(__file__).parent / "data"
TRAINING_ROWS = DATA / "train.jsonl"
HELD_OUT_ROWS = DATA / "held_out.jsonl"

__all__ = ["DATA", "HELD_OUT_ROWS", "MODEL", "TRAINING_ROWS"]
