from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.spool import FOLDERS, NameRefused, Placed, Spool, SpoolFull, inbox_name
from node.uids import is_plausible_uid

BYTES = bytes(range(256)) * 40


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "data")


def leftovers(spool: Spool) -> list[Path]:
    return list((spool.root / "tmp").iterdir())


def test_a_placed_file_holds_the_bytes_and_says_their_digest(spool: Spool) -> None:
    placed = spool.place(BYTES, "inbox/1.2/3.dcm")
    assert placed == Placed(spool.root / "inbox/1.2/3.dcm", hashlib.sha256(BYTES).hexdigest(), len(BYTES))
    assert placed.path.read_bytes() == BYTES
    assert leftovers(spool) == []


def test_chunks_are_written_in_order_and_views_are_not_copied_first(spool: Spool) -> None:
    placed = spool.place([BYTES[:100], memoryview(BYTES)[100:]], "outbox/a/b.dcm")
    assert placed.path.read_bytes() == BYTES
    assert placed.sha256 == hashlib.sha256(BYTES).hexdigest()


def test_a_draft_that_is_not_placed_is_gone(spool: Spool) -> None:
    with spool.draft([BYTES]) as draft:
        assert draft.sha256() == hashlib.sha256(BYTES).hexdigest()
        assert len(leftovers(spool)) == 1
    with pytest.raises(LookupError), spool.draft([BYTES]):
        raise LookupError("not what it should be")
    assert leftovers(spool) == []


def test_a_folder_that_was_removed_is_made_again(spool: Spool) -> None:
    placed = spool.place(BYTES, "inbox/1.2/3.dcm")
    shutil.rmtree(placed.path.parent)
    assert spool.place(BYTES, "inbox/1.2/3.dcm").path.read_bytes() == BYTES


def test_many_threads_place_into_new_folders_at_once(spool: Spool) -> None:
    def place(part: int) -> None:
        for number in range(10):
            spool.place(bytes([part]) * 1000, f"inbox/{number}/{part}.dcm")

    threads = [threading.Thread(target=place, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(list((spool.root / "inbox").rglob("*.dcm"))) == 80
    assert leftovers(spool) == []


def test_folders_are_remembered_up_to_a_number(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.spool.MOST_FOLDERS_KNOWN", 2)
    for number in range(5):
        assert spool.place(BYTES, f"inbox/{number}/1.dcm").path.exists()
    assert len(spool._durable_folders) <= 2


def test_placing_again_replaces_the_file_whole(spool: Spool) -> None:
    spool.place(b"first, longer", "outbox/1/x.dcm")
    spool.place(b"second", "outbox/1/x.dcm")
    assert (spool.root / "outbox/1/x.dcm").read_bytes() == b"second"
    assert leftovers(spool) == []


def test_a_draft_is_written_on_until_it_is_placed(spool: Spool) -> None:
    with spool.draft([BYTES[:100]]) as draft:
        draft.write(memoryview(BYTES)[100:])
        placed = draft.place("inbox/1.2/3.dcm")
        assert leftovers(spool) == []
    assert placed == Placed(spool.root / "inbox/1.2/3.dcm", hashlib.sha256(BYTES).hexdigest(), len(BYTES))
    assert placed.path.read_bytes() == BYTES
    assert placed.path.stat().st_nlink == 1


def test_a_chunk_that_cannot_be_written_leaves_nothing(spool: Spool) -> None:
    with pytest.raises(TypeError):
        spool.place([b"half", "text"], "inbox/1.2/3.dcm")  # type: ignore[list-item]
    assert leftovers(spool) == []
    assert not (spool.root / "inbox/1.2").exists()


def test_a_name_taken_by_a_folder_is_an_error_and_leaves_nothing(spool: Spool) -> None:
    (spool.root / "inbox/1.2/3.dcm").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        spool.place(BYTES, "inbox/1.2/3.dcm")
    assert leftovers(spool) == []


def test_quarantined_files_leave_the_inbox(spool: Spool) -> None:
    placed = spool.place(BYTES, "inbox/1.2/3.dcm")
    moved = spool.quarantine(placed, PurePosixPath("1.2", "3.dcm"))
    assert moved.path == spool.root / "quarantine/1.2/3.dcm"
    assert moved.path.read_bytes() == BYTES
    assert not placed.path.exists()


def test_one_file_that_two_want_in_quarantine_is_there_for_both_unless_it_is_gone(spool: Spool) -> None:
    first, second = (spool.place(BYTES, "inbox/1.2/3.dcm") for _ in range(2))
    moved = [spool.quarantine(placed, PurePosixPath("1.2", "3.dcm")) for placed in (first, second)]
    assert moved[0] == moved[1]
    assert moved[0].path.read_bytes() == BYTES
    moved[0].path.unlink()
    with pytest.raises(FileNotFoundError):
        spool.quarantine(second, PurePosixPath("1.2", "3.dcm"))


def test_with_the_last_of_a_series_in_quarantine_goes_its_empty_folder_in_the_inbox(spool: Spool) -> None:
    both = [spool.place(BYTES, f"inbox/1.{series}/3.dcm") for series in (2, 3)]
    kept = spool.place(BYTES, "inbox/1.3/4.dcm")
    for placed in both:
        moved = spool.quarantine(placed, PurePosixPath(*placed.path.parts[-2:]))
        assert spool.remove(moved.path) == len(BYTES)
    assert not spool.has_series("1.2")
    assert kept.path.exists()
    assert list((spool.root / "quarantine").iterdir()) == []


def test_the_folders_are_for_the_node_alone(spool: Spool) -> None:
    placed = spool.place(BYTES, "inbox/1.2/3.dcm")
    folders = [*(spool.root / name for name in FOLDERS), placed.path.parent]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}


# names


@pytest.mark.parametrize(
    "name",
    [
        "inbox/../../outside.dcm",
        "../inbox/1.dcm",
        "/etc/passwd",
        "inbox//1.dcm",
        "inbox/.hidden",
        "inbox/..",
        "inbox/a\x00b",
        "inbox/a b",
        "inbox/" + "a" * 129,
        "elsewhere/1.dcm",
        "inbox",
        "",
    ],
)
def test_a_name_that_could_leave_its_folder_is_refused(spool: Spool, name: str) -> None:
    with pytest.raises(NameRefused):
        spool.place(BYTES, name)
    assert leftovers(spool) == []


@given(st.text(max_size=200))
@example("inbox/" + "../" * 5 + "etc/passwd")
def test_no_text_names_a_file_outside(name: str) -> None:
    spool = object.__new__(Spool)
    spool.root = Path("/data")
    try:
        path = spool.path_of(name)
    except NameRefused:
        return
    assert os.path.normpath(path) == str(path)
    assert path.is_relative_to("/data")


@given(st.text(alphabet="0123456789./\\x\x00 ", max_size=70), st.text(alphabet="0123456789.", max_size=66))
@example("..", "1.2")
@example("../../outside", "1.2")
@example("1.2\n", "1.2")
@example("1/2", "1.2")
def test_an_inbox_name_is_three_plain_parts_or_refused(series: str, instance: str) -> None:
    if not (is_plausible_uid(series) and is_plausible_uid(instance)):
        with pytest.raises(NameRefused, match=r"^a UID of the instance is not 1 to 64 digits and dots$"):
            inbox_name(series, instance, "ab" * 32)
        return
    name = inbox_name(series, instance, "ab" * 32)
    assert name.parts == ("inbox", series, f"{instance}.{'ab' * 8}.dcm")
    assert ".." not in name.parts


# room


def test_a_disk_without_enough_room_is_said_in_words(spool: Spool) -> None:
    spool.require_room(1)
    spool.min_free_bytes = spool.free_bytes() + 2**40
    with pytest.raises(SpoolFull, match="must stay free"):
        spool.require_room(1)


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_file_the_system_will_not_take_is_spool_full_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_python(
        """
        import resource, sys
        from pathlib import Path
        from node.spool import Spool, SpoolFull
        spool = Spool(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            spool.place(bytes(200_000), "inbox/1.2/3.dcm")
        except SpoolFull as error:
            print(error)
        """,
        str(tmp_path / "data"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the spool is full: ")
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


# crashes


def test_the_sweep_removes_what_dead_processes_left_and_nothing_else(spool: Spool) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(timeout=60)
    tmp = spool.root / "tmp"
    gone = [f"{dead.pid}-ab", f"{os.getpid()}-ab", "stray", "9" * 30 + "-ab"]
    kept = [f"{os.getppid()}-ab", "1-ab"]
    for name in gone + kept:
        (tmp / name).write_bytes(b"half")
    assert spool.sweep() == len(gone)
    assert sorted(path.name for path in tmp.iterdir()) == sorted(kept)


def test_a_killed_writer_leaves_whole_files_and_a_sweepable_rest(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from node.spool import Spool
        spool = Spool(Path(sys.argv[1]))
        for number in range(100_000):
            spool.place(bytes([number % 256]) * 300_000, f"inbox/1.{number % 7}/{number}.dcm")
            print(number, flush=True)
    """
    data = tmp_path / "data"
    for round_ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(data)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(5)]
        time.sleep(0.013 * round_)
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate(timeout=60)
        acknowledged += [int(line) for line in rest.split()]
        for number in acknowledged:
            path = data / f"inbox/1.{number % 7}/{number}.dcm"
            assert path.read_bytes() == bytes([number % 256]) * 300_000
    spool = Spool(data)
    spool.sweep()
    assert leftovers(spool) == []
    assert {path.stat().st_size for path in data.rglob("*.dcm")} == {300_000}
