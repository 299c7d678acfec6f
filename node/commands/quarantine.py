"""`s2node quarantine`: instances that came under a SOP Instance UID that was taken already."""

from __future__ import annotations

from dataclasses import asdict

from node.commands.jobs import open_ledger
from node.commands.options import AsJson, ConfigFile, settings_of
from node.commands.screen import moment, say, show_rows, show_table


def quarantine(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List instances that were set aside because other bytes came first under their UID.

    In their series, or in another one that is still here. The first ones stay and are worked with; the job is
    theirs. The files lie in data_dir/quarantine, a folder a series; `s2node purge --quarantine` removes them.
    """
    with open_ledger(settings_of(config)) as ledger:
        found = ledger.set_aside()
    if as_json:
        show_rows([asdict(each) for each in found])
        return
    rows = [
        (each.id, each.job_id, each.calling_ae, each.times, moment(each.at), f"{each.bytes:,}", each.reason)
        for each in found
    ]
    show_table(("number", "job", "from", "times", "last", "bytes", "reason"), rows)
    say(f"{len(found)} in quarantine")
