"""The fallback: families that nobody has described, read off the structure of their model."""

from qlora_core import Architecture, hookimpl


@hookimpl
def qlora_infer_architecture(config: dict[str, object]) -> Architecture:
    """Build the model on the meta device, without weights or memory, and read its layers off.

    Raises MissingEngine without torch, and BadInput for a type that transformers cannot build.
    """
    from qlora_core import analyse, build_skeleton  # these need torch, which detection does not

    structure = analyse(build_skeleton(config))
    model_type = str(config["model_type"])
    return Architecture(
        name=model_type,
        model_types=(model_type,),
        targets=structure.targets(),
        layout=structure.layout(),
        source="the structure of the model, as the installed transformers builds it",
    )
