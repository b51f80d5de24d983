"""For authors of plugins: the exam that every family sits."""

from qlora_core.testing.contract import ArchitectureContract

__all__ = ["ArchitectureContract"]
