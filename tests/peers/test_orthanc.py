"""DCMTK sends to Orthanc, Orthanc forwards to the node, the node returns to that Orthanc.

The Orthanc routes everything it stores to the node, the node's own series too.
"""

import shutil
import subprocess
import time

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from node.outputs.encoding import to_bytes
from node.service import Node
from node.states import State

pytestmark = pytest.mark.peers

SYNTAXES = {"explicit": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian, "rle": RLELossless}
PROPOSED = {"explicit": "-xe", "implicit": "-xi", "rle": "-xr"}
"""storescu's option that proposes the syntax."""


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.1)
    return condition()


def storescu(folder, peer, syntax):
    command = ["storescu", PROPOSED[syntax], "-aet", "CT", "-aec", peer.ae_title, "127.0.0.1", str(peer.port)]
    sent = subprocess.run(
        [*command, "+sd", "+r", str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert sent.returncode == 0, sent.stderr


def in_syntax(folder, syntax):
    """Rewrite the uncompressed files of ``folder`` in ``syntax`` with DCMTK."""
    program = {"explicit": ["dcmconv", "+te"], "implicit": ["dcmconv", "+ti"], "rle": ["dcmcrle"]}[syntax]
    for path in folder.iterdir():
        subprocess.run([*program, str(path), str(path)], check=True, timeout=60, capture_output=True)
        assert dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == SYNTAXES[syntax]


def ask(program, options, peer, keys, folder):
    """Run DCMTK's findscu or getscu in the study root model; the data sets it writes into ``folder``."""
    folder.mkdir()
    command = [
        program,
        "-S",
        *options,
        "-od",
        str(folder),
        "-aec",
        peer.ae_title,
        "127.0.0.1",
        str(peer.port),
    ]
    words = [word for key in keys for word in ("-k", key)]
    subprocess.run([*command, *words], check=True, timeout=60, capture_output=True)
    return [dcmread(path, force=True) for path in folder.iterdir()]


def found_series(peer, study_uid, folder):
    """Series of the study that a C-FIND finds: from UID to its number of instances."""
    keys = ["QueryRetrieveLevel=SERIES", f"StudyInstanceUID={study_uid}", "SeriesInstanceUID"]
    matches = ask("findscu", ["-X"], peer, [*keys, "NumberOfSeriesRelatedInstances"], folder)
    return {match.SeriesInstanceUID: int(match.NumberOfSeriesRelatedInstances) for match in matches}


def fetched(peer, study_uid, series_uid, folder):
    """The series fetched by C-GET: data sets by SOP Instance UID."""
    keys = ["QueryRetrieveLevel=SERIES", f"StudyInstanceUID={study_uid}", f"SeriesInstanceUID={series_uid}"]
    return {ds.SOPInstanceUID: ds for ds in ask("getscu", [], peer, keys, folder)}


@pytest.fixture
def journey(quick_settings, orthanc, free_port, tmp_path):
    """Sends a folder all the way round; gives what the node made, what C-FIND finds and C-GET fetches."""

    def travel(folder, syntax, returned_in=()):
        first = dcmread(next(folder.iterdir()), stop_before_pixels=True)
        in_syntax(folder, syntax)
        listen = free_port()
        archive = orthanc(listen, syntaxes=returned_in)
        settings = quick_settings(
            listen={"port": listen, "allow_ae_titles": ["ORTHANC"]},
            settle={"quiet_s": 1.5, "max_wait_s": 600, "check_s": 0.2},
            destinations=[{"name": "pacs", "host": "127.0.0.1", "port": archive.port, "ae_title": "ORTHANC"}],
        )
        with Node(settings) as node:
            storescu(folder, archive, syntax)
            assert until(lambda: any(job.state is State.DELIVERED for job in node.ledger.jobs())), [
                (job.state, job.code, job.reason) for job in node.ledger.jobs()
            ]
            outputs = node.ledger.outputs(1)
            assert until(lambda: node.ledger.counters().get("own_dropped", 0) == len(outputs))
            assert until(archive.jobs_at_rest)
            assert [job.series_instance_uid for job in node.ledger.jobs()] == [first.SeriesInstanceUID]
            assert len(node.ledger.syntheses(1)) == 2
            received = {instance.transfer_syntax_uid for instance in node.ledger.instances(1)}
            series = found_series(archive, first.StudyInstanceUID, tmp_path / "found")
            datasets = {}
            for number, uid in enumerate(series):
                datasets[uid] = fetched(archive, first.StudyInstanceUID, uid, tmp_path / f"back{number}")
        return first, received, outputs, series, datasets

    return travel


def check(first, outputs, series, datasets, slices):
    """One series a phase stands beside the source in its study, and what was fetched equals our files."""
    made = {output.series_instance_uid: output.phase for output in outputs}
    assert sorted(made.values()) == ["arterial", "venous"]
    assert series == {first.SeriesInstanceUID: slices, **dict.fromkeys(made, slices)}
    for output in outputs:
        back, ours = datasets[output.series_instance_uid][output.sop_instance_uid], dcmread(output.path)
        assert back == ours
        assert back.StudyInstanceUID == first.StudyInstanceUID


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_phantom_travels_round_and_is_translated_once(journey, new_series, tmp_path, syntax):
    folder = tmp_path / "sent"
    folder.mkdir()
    for ds in new_series(1):
        (folder / f"{ds.InstanceNumber}.dcm").write_bytes(to_bytes(ds))
    returned_in = (ImplicitVRLittleEndian,) if syntax == "implicit" else ()
    first, received, outputs, series, datasets = journey(folder, syntax, returned_in)
    assert received == {SYNTAXES[syntax]}
    check(first, outputs, series, datasets, slices=12)


def test_a_real_series_travels_round_and_is_translated_once(journey, ct_dir, tmp_path):
    folder = tmp_path / "sent"
    folder.mkdir()
    for path in (ct_dir / "ncct_abdomen_ge_acrin001").glob("*.dcm"):
        shutil.copyfile(path, folder / path.name)
    first, received, outputs, series, datasets = journey(folder, "rle")
    assert received == {RLELossless}
    check(first, outputs, series, datasets, slices=19)
