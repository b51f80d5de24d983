"""Going on with a run: only as the same run, and from its newest whole checkpoint."""

from __future__ import annotations

from qlora_core.models.checkpoint import fetch
from qlora_core.models.trained import base_hash
from qlora_core.training import checkpoints
from qlora_core.training.identity import free_changes, identity, require_same
from qlora_core.training.optimizers import optimizer_name, require_same_state
from qlora_core.training.processes import Processes
from qlora_core.training.progress import Progress
from qlora_core.training.runs import Run
from qlora_core.training.session import Session
from qlora_core.training.setup import Inputs


def require_same_run(
    run: Run, inputs: Inputs, processes: Processes, progress: Progress
) -> list[str]:
    """Record what decides the result; refuse to resume where it has changed.

    Returns what differs from the record and was allowed to; opens no weight.
    """
    given = inputs.given
    folder = fetch(
        given.model,
        revision=given.revision,
        offline=given.offline,
        trust_remote_code=given.trust_remote_code,
    )
    base = processes.from_main(base_hash(folder) if processes.main else "")
    now = identity(inputs, base=base, processes=processes.count)
    before = run.record.get("identity", now)
    differences = require_same(before, now, given.allow_change)
    recorded = run.record.get("settings", {})
    if checkpoints.all_in(run.checkpoints):
        require_same_state(recorded.get("optimizer"), optimizer_name(given, inputs.device))
    for difference in differences:
        run.note("allowed-change", f"resumed with a change: {difference}", "as you allowed")
    for change in free_changes(recorded, given):
        progress.say(f"{change}; that does not change the result")
    run.record["identity"] = now
    return differences


def go_back(session: Session) -> None:
    """To the newest whole checkpoint, naming those that were passed over."""
    run, processes = session.run, session.loop.processes
    path, refused = processes.from_main(checkpoints.newest_valid(run.checkpoints, run.run_id))
    instead = f"{path.name} is used" if path else "none is whole: it starts from step 0"
    for name, reason in refused:
        run.note(
            "checkpoint-refused",
            f"the checkpoint {name} was passed over: {reason}",
            f"{instead}; the damaged one can be removed",
        )
    if path is None:
        run.rewind(-1)
        session.progress.say(f"no checkpoint in {run.directory}: starting from step 0")
        return
    session.restore(path)
    session.progress.say(f"resumed from {path}")
