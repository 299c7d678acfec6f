"""`s2node fetch`: what it lists, what it has sent here, and what it says where that does not work."""

import json

import pytest
from typer.testing import CliRunner

from config.settings import Settings
from node.cli import app
from node.errors import DestinationUnreachable, NodeError
from node.ledger import LEDGER_FILE, Ledger, Output, ReceivedInstance
from node.pull.fetch import NotListed
from node.pull.retrieve import MOST_NAMED, Wanted, identifier_of
from node.spool import Spool
from node.states import State


@pytest.fixture
def node(tmp_path):
    """Settings of a node that has run once, as a file; ``node(archive)`` is that file."""
    folder = tmp_path / "data"
    Ledger(folder / LEDGER_FILE).close()

    def write(*archives, port=1, min_free_bytes=0):
        settings = Settings.model_validate({"archives": archives})
        data_dir = json.dumps(str(folder))
        lines = [
            f"[listen]\nport = {port}\n[storage]\ndata_dir = {data_dir}\nmin_free_bytes = {min_free_bytes}"
        ]
        for archive in settings.model_dump(mode="json")["archives"]:
            lines.append("[[archives]]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in archive.items()]
        path = tmp_path / "s2node.toml"
        path.write_text("\n".join(lines))
        return path

    write.ledger = folder / LEDGER_FILE
    return write


def fetch(config, uid, *options):
    return CliRunner().invoke(app, ["fetch", uid, "--from", "archive", "-c", str(config), *options])


def test_of_a_study_the_ct_series_are_fetched_and_the_others_named(holder, node, new_series):
    ct, other = new_series(1), new_series(1)[:2]
    for ds in other:
        ds.Modality, ds.SeriesInstanceUID = "SR", "2.25.77.1.2"
        ds.SOPInstanceUID = ds.SOPInstanceUID.replace(".1.1.", ".1.2.")
    peer = holder([*ct, *other])
    ran = fetch(node(peer.entry(retrieve="get")), "2.25.77.1", "--json")
    assert ran.exit_code == 0, ran.exception
    rows = {row["series_instance_uid"]: row for row in json.loads(ran.stdout)}
    assert rows["2.25.77.1.1"]["here"] == rows["2.25.77.1.1"]["asked"] == 12
    assert rows["2.25.77.1.2"]["note"] == "SR is not translated"
    assert peer.asked == ["SERIES"]
    with Ledger(node.ledger) as ledger:
        assert [(job.instances, job.calling_ae) for job in ledger.jobs()] == [(12, "HOLDER")]


def test_what_cannot_be_sent_is_counted_and_the_command_fails(holder, node, new_series):
    peer = holder(new_series(1), keeps_back=3)
    config = node(peer.entry(retrieve="get"))
    ran = fetch(config, "2.25.77.1.1", "--study", "2.25.77.1", "--json")
    assert ran.exit_code == 1
    assert "3 are not here: see the archive's log and ours" in json.loads(ran.stdout)[0]["note"]
    peer.keeps_back = 0
    again = fetch(config, "2.25.77.1.1", "--study", "2.25.77.1")
    assert again.exit_code == 0
    assert peer.asked == ["SERIES", "IMAGE"], "the second time only what is missing is asked for"


def test_on_a_disk_that_fills_up_no_new_series_is_begun(holder, node, new_series):
    peer = holder(new_series(1))
    least = int(Spool(node.ledger.parent).free_bytes() / 1.25)
    ran = fetch(node(peer.entry(retrieve="get"), min_free_bytes=least), "2.25.77.1")
    assert isinstance(ran.exception, DestinationUnreachable), "the archive says that nothing could be sent"
    with Ledger(node.ledger) as ledger:
        assert ledger.jobs() == []


def test_series_that_this_node_made_are_not_fetched(holder, node, new_series, tmp_path):
    peer = holder(new_series(1))
    source = ReceivedInstance("1.1", "1", "1", "1.2", "2.25.77.1", "CT", tmp_path / "f", "00", 1)
    made = Output(1, "arterial", "ct_series", "2.25.77.1.1", "2.25.77.1.1.1", "1", tmp_path / "o", "00")
    with Ledger(node.ledger) as ledger:
        ledger.record_instance(source, 1.0)
        ledger.move(1, State.SETTLED, 2.0)
        ledger.move(1, State.READY, 3.0)
        ledger.lease("worker", 4.0, 60.0)
        ledger.record_built(1, "worker", [made], [], [], now=5.0)
    ran = fetch(node(peer.entry(retrieve="get")), "2.25.77.1")
    assert ran.exit_code == 0
    assert "made by this node" in ran.stdout
    assert peer.asked == []


def test_a_uid_that_the_archive_does_not_list_is_said_with_what_may_help(holder, node, new_series):
    ran = fetch(node(holder(new_series(1)).entry(retrieve="get")), "1.2.3")
    assert isinstance(ran.exception, NotListed)
    assert "name it with --study" in str(ran.exception)


def test_a_move_needs_a_node_that_listens(holder, node, new_series, free_port):
    config = node(holder(new_series(1)).entry(), port=free_port())
    ran = fetch(config, "2.25.77.1")
    assert isinstance(ran.exception, NodeError)
    assert 'start the node, or write retrieve = "get"' in str(ran.exception)


def test_a_wrong_name_or_uid_is_a_usage_error_that_says_what_there_is(holder, node):
    config = node(holder([]).entry())
    wrong = CliRunner().invoke(app, ["fetch", "1.2", "--from", "pacs", "-c", str(config)])
    none = CliRunner().invoke(app, ["fetch", "1.2", "--from", "pacs", "-c", str(node())])
    no_uid = fetch(config, "../../x")
    assert [ran.exit_code for ran in (wrong, none, no_uid)] == [2, 2, 2]
    assert "there is archive" in wrong.output
    assert "add [[archives]] to the settings" in none.output
    assert "is no UID" in no_uid.output


def test_many_missing_instances_are_asked_for_as_a_series(new_series):
    listed = frozenset(f"1.2.{number}" for number in range(MOST_NAMED + 2))
    few, many = frozenset(["1.2.1", "1.2.0"]), listed - {"1.2.0"}
    levels = {
        len(missing): identifier_of(Wanted("1", "1.2", listed, missing)).QueryRetrieveLevel
        for missing in (few, many, listed)
    }
    assert levels == {2: "IMAGE", MOST_NAMED + 1: "SERIES", MOST_NAMED + 2: "SERIES"}
    assert list(identifier_of(Wanted("1", "1.2", listed, few)).SOPInstanceUID) == ["1.2.0", "1.2.1"]
