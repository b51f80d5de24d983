"""Ask the Hub, and turn each of its refusals into one clear message."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_core.errors import BadInput, first_line

LOCAL = "or give the path of a local folder"


@contextmanager
def clear_errors(
    hub_id: str, revision: str | None = None, *, offline: bool = False
) -> Iterator[None]:
    """Raise BadInput in place of what huggingface_hub raises: gated, unknown, unreachable."""
    from huggingface_hub import errors

    http = logging.getLogger("huggingface_hub.utils._http")
    http.addFilter(_is_no_retry)
    try:
        yield
    except errors.GatedRepoError:
        raise BadInput(
            f"{hub_id} is gated: its owner has to grant you access",
            "ask for access on the model's page, then `hf auth login` or set HF_TOKEN",
        ) from None
    except errors.RepositoryNotFoundError:
        raise BadInput(
            f"{hub_id} is neither a local folder nor a Hub repository that you may see",
            f"check the spelling, log in with `hf auth login` if it is private, {LOCAL}",
        ) from None
    except errors.RevisionNotFoundError:
        raise BadInput(f"{hub_id} has no revision {revision!r}", "check --revision") from None
    except errors.LocalEntryNotFoundError:
        why = "--offline forbids asking the Hub" if offline else "the Hub cannot be reached"
        raise BadInput(
            f"{hub_id} is neither a local folder nor in the Hub's cache, and {why}",
            f"check the spelling, the connection and HF_ENDPOINT, {LOCAL}",
        ) from None
    except errors.HFValidationError:
        raise BadInput(
            f"{hub_id!r} is neither a folder nor a possible Hub id", f"use OWNER/NAME, {LOCAL}"
        ) from None
    except (errors.HfHubHTTPError, ConnectionError, RuntimeError) as error:
        # RuntimeError: how huggingface_hub 1.3 ends its retries, its client closed meanwhile
        if isinstance(error, RuntimeError) and "client has been closed" not in str(error):
            raise
        raise BadInput(
            f"{hub_id}: the Hub cannot be used: {first_line(error)}", f"try again later, {LOCAL}"
        ) from None
    finally:
        http.removeFilter(_is_no_retry)


def _is_no_retry(record: logging.LogRecord) -> bool:
    """Whether it is more than the notice of a failed request: we say what became of it."""
    message = record.getMessage()
    return "thrown while requesting" not in message and not message.startswith("Retrying")


def download(hub_id: str, filename: str, revision: str | None, *, offline: bool) -> Path | None:
    """One settings file of a Hub repository, or None where the repository has no such file."""
    from huggingface_hub import errors, hf_hub_download

    with clear_errors(hub_id, revision, offline=offline):
        try:
            return Path(
                hf_hub_download(hub_id, filename, revision=revision, local_files_only=offline)
            )
        except errors.LocalEntryNotFoundError:
            if offline and filename != "config.json":
                return None
            raise
        except errors.EntryNotFoundError:
            return None
