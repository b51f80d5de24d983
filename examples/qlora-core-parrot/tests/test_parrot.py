from qlora_core.testing import ArchitectureContract


class TestParrot(ArchitectureContract):
    plugin = "parrot"
