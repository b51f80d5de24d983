"""Our own families sit the exam that strangers' sit."""

from qlora_core.testing import ArchitectureContract


class TestOurFamilies(ArchitectureContract):
    plugin = "*"
