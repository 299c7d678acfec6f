"""A real Orthanc on loopback, in a folder of its own, that lives as long as one test."""

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

ROUTE_EVERYTHING = """
function OnStoredInstance(instanceId, tags, metadata, origin)
  SendToModality(instanceId, 'node')
end
"""
"""Orthanc forwards whatever it stores, also what the node sends back: the worst case for a loop."""
KNOWN = {"node": "S2NODE", "ct": "CT", "find": "FINDSCU", "get": "GETSCU"}
"""Whom it lets in, from this machine only: its DICOM port is open on every address."""


class Orthanc:
    """An archive that routes every instance to the node at ``node_port``.

    ``syntaxes`` are the transfer syntaxes it accepts (all of DICOM's without); ``routes`` is False for one
    that keeps what it stores to itself; ``more`` are further settings by Orthanc's names.
    """

    def __init__(
        self,
        folder: Path,
        node_port: int,
        ports: tuple[int, int],
        syntaxes: tuple[str, ...],
        routes: bool = True,
        **more: object,
    ) -> None:
        self.ae_title = "ORTHANC"
        self.port, self.http_port = ports
        folder.mkdir()
        (folder / "route.lua").write_text(ROUTE_EVERYTHING)
        settings = {
            "Name": "test", "DicomAet": self.ae_title, "DicomPort": self.port, "HttpPort": self.http_port,
            "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomCheckCalledAet": True,
            "DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False, "DicomCheckModalityHost": True,
            "LuaScripts": [str(folder / "route.lua")] if routes else [], "Plugins": [], "StableAge": 1,
            "DicomModalities": {name: [ae, "127.0.0.1", node_port] for name, ae in KNOWN.items()},
            "ConcurrentJobs": 1, "DicomScuTimeout": 10, "SaveJobs": False,
        }  # fmt: skip
        settings.update(more)
        if syntaxes:
            settings["AcceptedTransferSyntaxes"] = list(syntaxes)
        (folder / "orthanc.json").write_text(json.dumps(settings))
        program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=self._log, stderr=subprocess.STDOUT
        )
        self._wait_until_up()

    def get(self, path: str) -> object:
        """An answer of its REST interface."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            return json.load(answer)

    def do(self, method: str, path: str, body: object = None) -> object:
        """A change through its REST interface, and what it answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def jobs_at_rest(self) -> bool:
        """Whether nothing it was told to send is still to be sent."""
        jobs = self.get("/jobs?expand")
        assert isinstance(jobs, list)
        return all(job["State"] in {"Success", "Failure"} for job in jobs)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait_until_up(self) -> None:
        for _ in range(200):
            try:
                self.get("/system")
            except OSError:
                assert self._process.poll() is None, "Orthanc did not start"
                time.sleep(0.1)
            else:
                return
        raise TimeoutError("Orthanc does not answer")


@pytest.fixture
def orthanc(tmp_path, free_port):
    """Starts an Orthanc: ``orthanc(node_port, syntaxes, routes)``, and settings of its own by their names."""
    started = []

    def start(node_port, syntaxes=(), routes=True, **more):
        ports = (free_port(), free_port())
        folder = tmp_path / f"orthanc{len(started)}"
        started.append(Orthanc(folder, node_port, ports, syntaxes, routes, **more))
        return started[-1]

    yield start
    for each in started:
        each.stop()
