"""Who speaks in a conversation."""

from __future__ import annotations

from qlora_core.errors import BadInput

ROLES = ("system", "user", "assistant", "tool")
"""Whatever data call their speakers, these are the roles that turns have once they are read."""


def listed_roles(value: str | None) -> tuple[str, ...]:
    """The roles of ``trusted_roles``, separated by commas. Raises BadInput for an unknown one."""
    roles = tuple(part.strip() for part in value.split(",")) if value else ()
    unknown = next((role for role in roles if role not in ROLES), None)
    if unknown is not None:
        raise BadInput(
            f"trusted_roles = {value!r}: {unknown!r} is no role, so no text would be trusted",
            f"use one or more of {', '.join(ROLES)}, separated by commas",
        )
    return roles
