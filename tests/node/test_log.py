import io
import json
import logging
import warnings

import pytest
import structlog

from config.settings import LogSettings
from node import log as node_log
from node.log import redacted

SECRETS = ("DOE^JANE", "1.2.840.113619.2.55.3.604688119", "19541203", "1954-12-03")


class Log(io.StringIO):
    def configure(self, **settings):
        node_log.configure(LogSettings(**settings), self)

    def lines(self):
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def log():
    """A log of JSON lines; what configuring changes in this process is put back afterwards."""
    loggers = [logging.getLogger(name) for name in (None, *node_log.OUR_ROOMS)]
    levels, handlers = [logger.level for logger in loggers], loggers[0].handlers[:]
    written = Log()
    with warnings.catch_warnings():
        written.configure(level="debug", format="json")
        yield written
    logging.raiseExceptions = True
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    structlog.reset_defaults()


def test_a_line_names_an_event_and_a_job(log):
    structlog.get_logger("node.settle").info("series settled", job=17, slices=212)
    (line,) = log.lines()
    assert line["event"] == "series settled"
    assert (line["job"], line["slices"], line["level"]) == (17, 212, "info")
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_patient_is_replaced_wherever_it_stands(log, secret):
    worker = structlog.get_logger("node.worker")
    worker.info(f"about {secret}", job=1, note=f"x {secret} y", many=[secret], error=ValueError(secret))
    (line,) = log.lines()
    assert secret not in json.dumps(line)
    assert line["job"] == 1


def test_addresses_versions_and_numbers_stay_readable():
    text = "10.1.2.3:11112 pynetdicom 3.0.4 status 0xA700 job 20240 after 3600 s"
    assert redacted(text) == text


@pytest.mark.parametrize("secret", SECRETS)
def test_of_another_librarys_record_only_the_place_is_kept(log, secret):
    logger = logging.getLogger("pydicom")
    logger.warning("Invalid value for VR UI: '%s'", secret)
    try:
        int(f"no number: {secret}")
    except ValueError:
        logger.exception("while reading %s", secret)
    first, second = log.lines()
    assert secret not in json.dumps([first, second])
    assert first["event"].startswith("pydicom: test_log.")
    assert second["error"] == "ValueError"


def test_warnings_are_not_shown_because_they_quote_data_sets(log):
    warnings.warn("DOE^JANE", stacklevel=1)
    assert log.getvalue() == ""


def test_text_for_people_is_one_line_too(log):
    log.configure(format="text")
    structlog.get_logger("node.scp").info("listening", port=11112)
    assert "listening" in log.getvalue()


def test_levels_below_the_one_asked_for_are_not_written(log):
    log.configure(level="warning", format="json")
    structlog.get_logger("node.scp").info("listening")
    assert log.lines() == []
