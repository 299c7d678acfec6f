"""`s2node doctor`: is everything there that the node depends on?"""

from __future__ import annotations

from dataclasses import asdict

import typer

from config.load import ConfigError
from node.commands.exits import CONFIG, FAILED
from node.commands.options import AsJson, ConfigFile, config_file, settings_of
from node.commands.screen import say, show_json
from node.doctor import Finding, Level, examine


def doctor(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check everything the node depends on, with a cure for each.

    Configuration, disk, ledger, clock, models, provider, listener, peers, figures and audit; nothing is
    changed.

    Every finding that is not OK has a cure. Ends with 0 where nothing is a PROBLEM, with 78 where the
    configuration is at fault, else with 1.
    """
    try:
        settings = settings_of(config)
    except ConfigError as error:
        problems = [Finding("configuration", Level.PROBLEM, str(each), "mend it") for each in error.problems]
        _show(problems, as_json)
        raise typer.Exit(CONFIG) from None
    read = Finding("configuration", Level.OK, f"{config_file(config) or 'the defaults'}: valid")
    findings = [read, *examine(settings)]
    _show(findings, as_json)
    if any(finding.level is Level.PROBLEM for finding in findings):
        raise typer.Exit(FAILED)


def _show(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        show_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        say(f"{finding.level:<8} {finding.check:<14} {finding.what}")
        if finding.cure:
            say(f"{'':<8} {'':<14} cure: {finding.cure}")
