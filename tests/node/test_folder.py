import os
import time

import pytest

from config.settings import FolderDestination
from node.destinations import folder
from node.errors import DestinationUnreachable


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    return FolderDestination(kind="folder", name="disk", path=path)


def test_each_series_gets_a_folder_and_each_instance_a_file(disk, ct_files):
    list(folder.deliver(disk, ct_files))
    found = sorted(str(path.relative_to(disk.path)) for path in disk.path.rglob("*.dcm"))
    assert found == [f"2.25.20/2.25.20.{n}.dcm" for n in range(1, 5)]
    assert all(not path.name.endswith(".part") for path in disk.path.rglob("*"))


def test_a_share_that_is_not_mounted_is_not_made(disk, ct_files):
    disk.path.rmdir()
    with pytest.raises(DestinationUnreachable, match="mount"):
        next(folder.deliver(disk, ct_files))
    assert not disk.path.exists()


def test_a_folder_that_cannot_be_written_is_tried_again_later(disk, ct_files):
    (disk.path / "2.25.20").write_text("a file in the way")
    with pytest.raises(DestinationUnreachable, match="cannot write"):
        next(folder.deliver(disk, ct_files))


def test_a_copy_that_fails_leaves_nothing_half_written(disk, ct_files, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DestinationUnreachable, match="No space left"):
        next(folder.deliver(disk, ct_files))
    assert [path for path in disk.path.rglob("*") if path.is_file()] == []


def test_what_a_node_that_died_left_is_written_over_or_goes_after_an_hour(disk, ct_files):
    again, stale, fresh = (disk.path / f".{uid}.part" for uid in ("2.25.20.1", "2.25.9.1", "2.25.9.2"))
    for part in (again, stale, fresh):
        part.write_bytes(b"half")
    an_hour_ago = time.time() - folder.STALE_S - 1
    os.utime(stale, (an_hour_ago, an_hour_ago))
    list(folder.deliver(disk, ct_files))
    assert list(disk.path.rglob("*.part")) == [fresh]
    assert (disk.path / "2.25.20" / "2.25.20.1.dcm").read_bytes() == ct_files[0].read_bytes()
