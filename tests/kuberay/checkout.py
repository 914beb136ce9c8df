"""The scripts of `kuberay/cluster` in a copy of the checkout, with stand-ins for the tools that need a cluster."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.processes import ROOT
from tests.running import wait_until

CLUSTER = ROOT / "kuberay" / "cluster"
TOOLS = ("docker", "kind", "kubectl", "helm")
# What the scripts use of the system; nothing else is on their PATH.
SYSTEM = ("awk", "bash", "cat", "cksum", "cut", "dirname", "env", "grep", "mkdir", "sed", "sleep", "tail", "tr")

# The world in the beginning: files that tests and stand-ins read and write.
FRESH = {
    "clusters": "",
    "others": "",  # clusters that stay when ours is deleted
    "node_running": "true",
    "engine": "4 8323006464",  # cores and bytes of memory
    "contexts": "elsewhere",
    "current_context": "elsewhere",
    "port-30080": "80",
    "port-30443": "443",
    "image-circles:local": "sha256:1",
    "image-circles-kserve:local": "sha256:2",
    # The application, as Kubernetes would tell: whether its namespace is there, and of which environment; of its
    # RayService the strategy, the description of the cluster, and generation, observed generation, Ready,
    # UpgradeInProgress; the clusters made of it.
    "namespace": "",
    "environment": "",
    "strategy": "None",
    "description": "{}",
    "readiness": "1,1,True,False",
    "rayclusters": "raycluster.ray.io/circles-x7k2p",
    "pods": "pod/circles-head\npod/circles-ingress",
    "diff": "1",
    # A part of a command line; calls that have it fail, or last until a signal.
    "failing": "",
    "lasting": "",
    "lasts": "",  # whether one does
}


@dataclass(frozen=True)
class Call:
    """How a stand-in was called."""

    pid: int
    trusted: str
    """The file of certificates that it was told to trust."""
    line: str


class Checkout:
    """A copy of the scripts, and the world that the stand-ins play."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.world = folder / "world"
        self._programs = folder / "programs"
        for each in (
            self.folder / ".venv" / "bin",
            self.world / "releases",
            self.world / "annotations",
            self._programs,
        ):
            each.mkdir(parents=True)
        shutil.copytree(CLUSTER, self.folder / "kuberay" / "cluster")
        for program in (*(self._programs / tool for tool in TOOLS), self.folder / ".venv" / "bin" / "python"):
            shutil.copy(Path(__file__).parent / "stand_in.sh", program)
        for name in SYSTEM:
            path = shutil.which(name)
            assert path is not None, name
            (self._programs / name).symlink_to(path)
        self.set(**FRESH)
        self.forget()

    def set(self, **changes: str) -> None:
        """Changes the world."""
        for name, value in changes.items():
            (self.world / name).write_text(value)

    def get(self, name: str) -> str:
        """What the world is like."""
        return (self.world / name).read_text()

    def remove_tool(self, name: str) -> None:
        (self._programs / name).unlink()

    def forget(self) -> None:
        """Begins the list of calls anew."""
        self.set(calls="")

    def records(self) -> list[Call]:
        """The calls since then."""
        return [
            Call(int(pid), trusted, line)
            for pid, trusted, line in (record.split("\t") for record in self.get("calls").splitlines())
        ]

    def calls(self) -> list[str]:
        """Their command lines."""
        return [call.line for call in self.records()]

    def command(self, script: str, arguments: Sequence[str]) -> list[str]:
        return [str(self.folder / "kuberay" / "cluster" / script), *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        return {"PATH": str(self._programs), "STAND_IN": str(self.world), "CIRCLES_PAUSE_S": "0", **variables}

    def run(self, script: str, *arguments: str, answer: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(script, arguments),
            cwd=self.folder.parent,  # any other than the checkout
            env=self.environment(**variables),
            input=answer,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def succeed(self, script: str, *arguments: str, **variables: str) -> str:
        """What a run says that must succeed."""
        done = self.run(script, *arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def interrupt(
        self, script: str, *arguments: str, when: Callable[[], bool], is_ended_alone: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Presses Ctrl-C in its terminal, which reaches all of it, once the condition holds.

        Args:
            is_ended_alone: Sends it SIGTERM instead, and nothing to what it started.
        """
        with subprocess.Popen(
            self.command(script, arguments),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                wait_until(when)
                if is_ended_alone:
                    process.terminate()
                else:
                    os.killpg(process.pid, signal.SIGINT)
                said, complaints = process.communicate(timeout=30)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(script, process.returncode, said, complaints)
