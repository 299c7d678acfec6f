"""The page of figures has every figure a node shows, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from config.settings import Settings
from node.audit.auditor import Auditor
from node.ledger import LEDGER_FILE, Ledger
from node.watch.chronicle import Chronicle
from node.watch.figures import Figures
from node.watch.signs import Signs, WorkerSign

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
WELL = Signs({"settle": True}, (WorkerSign(True, True, True),), 0, True)


def test_every_figure_is_on_the_page(quick_settings: Callable[..., Settings]) -> None:
    settings = quick_settings(audit={"to_file": True})
    registry = CollectorRegistry()
    with Ledger(settings.storage.data_dir / LEDGER_FILE) as ledger:
        auditor = Auditor(settings, ledger)
        Chronicle(ledger, registry)
        registry.register(Figures(settings, ledger, lambda: WELL, [auditor.figures]))
        shown = {
            metric.name + ("_total" if metric.type == "counter" else "") for metric in registry.collect()
        }
        auditor.close()
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `s2node_")]
    named = {name for row in rows for name in re.findall(r"`(s2node_\w+)", row)}
    assert named == shown
