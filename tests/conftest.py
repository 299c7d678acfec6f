"""What every test may ask for: the folder of real CT, and the DICOM peers of this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("s2node", deadline=None, derandomize=True)
settings.load_profile("s2node")

PEERS = ("storescu", "storescp", "echoscu", "findscu", "Orthanc")
REPOSITORY = Path(__file__).resolve().parents[1]


def missing_peers() -> list[str]:
    """The peer programs that are not on this machine; Debian puts Orthanc in /usr/sbin."""
    search = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    return [name for name in PEERS if shutil.which(name, path=search) is None]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("peers") is None or not (missing := missing_peers()):
        return
    reason = f"needs {', '.join(missing)} (Debian packages dcmtk and orthanc)"
    if os.environ.get("S2NODE_REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def ct_dir() -> Path:
    """The folder of real CT series beside the repository, or the one S2NODE_TEST_CT names."""
    folder = Path(os.environ.get("S2NODE_TEST_CT", REPOSITORY.parent / "shared" / "ct"))
    if not folder.is_dir():
        pytest.skip(f"no real CT at {folder}: set S2NODE_TEST_CT to a folder of it")
    return folder
