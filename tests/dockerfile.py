"""The Dockerfile, carried out without Docker: every step of every stage, by what the file says, and then the container.

A stage is a layer of overlayfs. This machine's own files stand in for the base images, so what is tried is what the
project adds to them, not what they bring. It needs root, and Linux's namespaces. What is not understood here, be it an
instruction, a flag or a pattern, is an error.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from tests.running import wait_until

ADDRESS = "10.203.0.2"
"""Of a container; reached from nowhere but its own network."""

_UID, _GID = 1000, 1000
_OPAQUE = "trusted.overlay.opaque"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# How this machine reaches packages is no part of an image: arguments that every build knows, and their like.
_PASSED_ON = re.compile(r"(?i)(http|https|no|all)_proxy|PIP_(?!FIND_LINKS).*|UV_.*INDEX.*|SSL_CERT_(FILE|DIR)")


class BuildError(Exception):
    """A step failed; the message is its output."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of the file: ``COPY --from=uv /a /b`` has the flags ``{"from": "uv"}`` and the text ``/a /b``."""

    name: str
    flags: Mapping[str, str]
    text: str

    def list(self) -> list[str]:
        """The text as Docker's JSON form has it.

        Raises:
            ValueError: It is in the shell's form, which puts a shell between Docker and the program.
        """
        words = json.loads(self.text)
        assert isinstance(words, list)
        return [str(word) for word in words]


@dataclass(frozen=True, slots=True)
class Stage:
    """From one ``FROM`` to the next."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


@dataclass
class Image:
    """What a stage leaves: the files of its layer, and how it wants to be run."""

    layer: Path
    environment: dict[str, str]
    user: str = "0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health_command: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def path(self, path: str) -> Path:
        """Where a file that the stage wrote (not one of the base image) lies on this machine."""
        return self.layer / path.lstrip("/")


def parse(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage, and the stages."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        words = rest.strip()
        flags = {}
        while found := re.match(r"--([a-z-]+)=(\S+)\s+", words):
            flags[found[1]] = found[2]
            words = words[found.end() :]
        if name == "ARG" and not stages:
            key, _, value = words.partition("=")
            arguments[key] = value
        elif name == "FROM":
            base, as_word, stage = words.split()
            assert as_word == "AS", f"not understood: {line}"
            stages.append(Stage(stage, _expand(base, arguments), ()))
        else:
            last = stages.pop()
            stages.append(Stage(last.name, last.base, (*last.instructions, Instruction(name, flags, words))))
    return arguments, stages


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """``$NAME`` and ``${NAME}``; those that are not there are an error, as are all other forms."""
    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda found: variables[found[1] or found[2]], text)


def build_context(source: Path, folder: Path) -> Path:
    """What ``.dockerignore`` lets in, copied."""
    first, *rest = [
        line for line in (source / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert first == "*", "it is to name what goes in, not what stays out"
    is_out = shutil.ignore_patterns(*(line.removeprefix("**/") for line in rest if line.startswith("**/")))
    for line in rest:
        if line.startswith("**/"):
            continue
        assert re.fullmatch(r"![\w./-]+", line), f"not understood: {line}"
        path = source / line[1:]
        (folder / line[1:]).parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, folder / line[1:], ignore=is_out)
        else:
            shutil.copy2(path, folder / line[1:])
    return folder


def why_impossible(folder: Path) -> str | None:
    """Why this machine cannot do it; None where it can."""
    if os.getuid() != 0:
        return "building an image without Docker needs root"
    (folder / "mnt").mkdir(parents=True)
    try:
        _in_root(_layer(folder, "try"), folder / "mnt", "true", {})
    except (BuildError, OSError) as error:
        return f"building an image without Docker needs mount namespaces and overlayfs: {error}"
    return None


class Builder:
    """Builds stages, each once."""

    def __init__(self, dockerfile: str, context: Path, folder: Path, arguments: Mapping[str, str] = {}) -> None:
        """
        Args:
            context: The files that ``COPY`` sees.
            folder: Where the layers are made.
            arguments: As of ``docker build --build-arg``.
        """
        self._global_arguments, stages = parse(dockerfile)
        self._stages = {stage.name: stage for stage in stages}
        self.default_target = stages[-1].name
        self._context = context
        self._folder = folder
        self._arguments = arguments
        self._built: dict[str, Image] = {}
        (folder / "mnt").mkdir(parents=True)
        (folder / "from").mkdir()

    def build(self, target: str) -> Image:
        """The image of this stage.

        Raises:
            BuildError: A step failed.
        """
        if target not in self._built:
            stage = self._stages[target]
            assert stage.base not in self._stages, "a stage on top of another one is not understood"
            image = self._base_image(target)
            arguments: dict[str, str] = {}
            for instruction in stage.instructions:
                self._carry_out(instruction, image, arguments)
            self._built[target] = image
        return self._built[target]

    def _base_image(self, target: str) -> Image:
        """This machine as a base image: its system and its Python 3.11, without this checkout and what lies about.

        What tells the two apart lies in the layer of the stage: overlayfs wants no layer inside another one.
        """
        layer = _layer(self._folder, target)
        python = Path(sys.base_prefix)
        (layer / python.relative_to("/")).mkdir(mode=0o755, parents=True)  # open to all, also in /root
        for emptied in ("tmp", "home"):
            (layer / emptied).mkdir(mode=0o755)
            os.setxattr(layer / emptied, _OPAQUE, b"y")
        for absent in (Path("/app"), Path("/data"), Path(__file__).resolve().parent.parent):
            path = layer / absent.relative_to("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))  # overlayfs' sign that there is none, whatever lies below
        (layer / "tmp").chmod(0o1777)
        return Image(layer, {"PATH": f"{python}/bin:{_SYSTEM_PATH}", "HOME": "/root"})

    def _carry_out(self, instruction: Instruction, image: Image, arguments: dict[str, str]) -> None:
        variables = {**arguments, **image.environment}
        text = instruction.text
        match instruction.name:
            case "ARG":
                name, _, default = text.partition("=")
                arguments[name] = self._arguments.get(name, default or self._global_arguments.get(name, default))
            case "ENV" | "LABEL":
                (image.environment if instruction.name == "ENV" else image.labels).update(_assignments(text, variables))
            case "WORKDIR":
                image.folder = text
                self._run(image, f"mkdir -p {shlex.quote(text)}", {})
            case "USER":
                image.user = text
            case "EXPOSE":
                pass  # documentation
            case "HEALTHCHECK":
                image.health_command = Instruction("CMD", {}, text.partition("CMD ")[2]).list()
            case "ENTRYPOINT" | "CMD":
                (image.entrypoint if instruction.name == "ENTRYPOINT" else image.command)[:] = instruction.list()
            case "COPY":
                self._copy(instruction, image)
            case "RUN":
                assert image.user == "0", "steps of other users are not understood"
                assert "<<" not in text, "here-documents are not understood"
                self._run(image, f"cd {shlex.quote(image.folder)} && {text}", arguments, instruction.flags)
            case _:
                raise AssertionError(f"not understood: {instruction}")

    def _copy(self, instruction: Instruction, image: Image) -> None:
        assert set(instruction.flags) <= {"from"}, f"not understood: {instruction}"
        *sources, target = instruction.text.split()
        assert not re.search(r"[*?\[$]", instruction.text), f"not understood: {instruction}"
        is_folder = target.endswith("/")
        target = os.path.normpath(os.path.join(image.folder, target))  # noqa: PTH118 - a path in the image
        steps = [f"mkdir -p mnt{target if is_folder else os.path.dirname(target)}"]  # noqa: PTH120
        other = self.build(instruction.flags["from"]) if "from" in instruction.flags else None
        if other is not None:
            steps.insert(0, _overlay(other.layer, self._folder / "from", "ro"))
        for source in sources:
            path = f"from{source}" if other is not None else str(self._context / source)
            # A folder's contents go where a file itself goes.
            steps.append(
                f"if [ -d {path} ]; then mkdir -p mnt{target} && cp -a --no-preserve=ownership {path}/. mnt{target}/; "
                f"else cp -a --no-preserve=ownership {path} mnt{target}{'/' if is_folder else ''}; fi"
            )
        script = "\n".join(["set -e", _overlay(image.layer, self._folder / "mnt", "rw"), *steps])
        _checked(["unshare", "--mount", "sh", "-c", script], self._folder, {"PATH": _SYSTEM_PATH})

    def _run(
        self, image: Image, command: str, arguments: Mapping[str, str], flags: Mapping[str, str] | None = None
    ) -> None:
        caches = []
        for name, value in (flags or {}).items():
            found = re.fullmatch(r"type=cache,target=(/[\w./-]+)", value)
            assert name == "mount", f"not understood: --{name}"
            assert found, f"not understood: {value}"
            Path(found[1]).mkdir(parents=True, exist_ok=True)
            caches.append(found[1])
        passed_on = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        environment = {**passed_on, **arguments, **image.environment}
        _in_root(image.layer, self._folder / "mnt", command, environment, caches)


def _assignments(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    words = (word.partition("=") for word in shlex.split(text))
    return {name: _expand(value, variables) for name, _, value in words}


def _layer(folder: Path, name: str) -> Path:
    """A new one; beside it, the work folder that overlayfs wants on the same file system."""
    layer = folder / f"{name}.layer"
    layer.mkdir(parents=True)
    (folder / f"{name}.layer.work").mkdir()
    return layer


def _overlay(layer: Path, target: Path, mode: str) -> str:
    """The command that mounts a layer, on top of this machine's files, at a folder."""
    return f"mount -t overlay overlay -o {mode},lowerdir=/,upperdir={layer},workdir={layer}.work {target}"


def _in_root(
    layer: Path, target: Path, command: str, environment: Mapping[str, str], shared: Sequence[str] = ()
) -> None:
    """Runs a command of the shell as root, with this layer as root file system.

    Args:
        target: An empty folder, to mount it at.
        shared: Folders of this machine to have there, too.
    """
    mounts = [_overlay(layer, target, "rw")]
    mounts += [f"mount --rbind {path} {target}{path}" for path in ("/proc", "/sys", "/dev")]
    mounts += [f"mkdir -p {target}{path} && mount --bind {path} {target}{path}" for path in shared]
    script = "\n".join(["set -e", *mounts, f"exec chroot {target} /bin/sh -c {shlex.quote(command)}"])
    _checked(["unshare", "--mount", "/bin/sh", "-c", script], target.parent, {"PATH": _SYSTEM_PATH, **environment})


def _checked(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{command[-1]}\n\nended with {done.returncode}:\n{done.stdout}")


class Container:
    """An image that runs: read-only, without capabilities, with processes and a network of its own.

    As after ``docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -v data:/data``.
    """

    def __init__(self, image: Image, folder: Path, data: Path | None = None, command: Sequence[str] = ()) -> None:
        """Starts it.

        Args:
            folder: For its mount point and its log.
            data: Becomes ``/data``; None for an image that keeps nothing.
            command: Instead of the image's.
        """
        assert image.user == f"{_UID}:{_GID}", "an image is to run as this user"
        self._image = image
        root = folder / "root"
        root.mkdir(parents=True)
        self.log_path = folder / "log"
        self._environment = [f"{name}={value}" for name, value in image.environment.items()]
        mounts = [
            _overlay(image.layer, root, "ro"),
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /sys {root}/sys",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=512m shm {root}/dev/shm",
            # Docker's defaults for --tmpfs.
            f"mount -t tmpfs -o nosuid,nodev,noexec,mode=1777 tmp {root}/tmp",
            *([f"mount --bind {data} {root}/data"] if data is not None else []),
            "ip link set lo up",
            # The way out, though it leads nowhere, tells Ray the address of its node.
            f"ip address add {ADDRESS}/24 dev lo",
            f"ip route add default dev lo src {ADDRESS}",
        ]
        program = self._as_user([*image.entrypoint, *(command or image.command)])
        script = "\n".join(["set -e", *mounts, f"exec chroot {root} {shlex.join(program)}"])
        namespaces = ["--mount", "--pid", "--fork", "--net", "--ipc", "--uts"]
        with self.log_path.open("wb") as log:
            self._process = self._start(["unshare", *namespaces, "/bin/sh", "-c", script], log)
        wait_until(lambda: self._process.poll() is not None or bool(self.processes()))

    def _start(self, command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
        environment = {"PATH": _SYSTEM_PATH}
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _as_user(self, command: Sequence[str]) -> list[str]:
        privileges = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        user = ["setpriv", f"--reuid={_UID}", f"--regid={_GID}", *privileges]
        return [*user, "env", "-i", f"--chdir={self._image.folder}", *self._environment, *command]

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self.log_path.read_text(errors="replace")

    @property
    def first_process(self) -> psutil.Process:
        """Number 1 inside."""
        (child,) = psutil.Process(self._process.pid).children()
        return child

    def processes(self) -> list[psutil.Process]:
        """All of its processes."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def execute(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """As ``docker exec`` does."""
        enter = ["nsenter", f"--target={self.first_process.pid}", "--all", "--root"]
        return subprocess.run([*enter, *self._as_user(command)], capture_output=True, text=True, check=False)

    def ask(self, *curl: str) -> "subprocess.CompletedProcess[str]":
        """curl in the container's network, but of this machine's files."""
        enter = ["nsenter", f"--target={self.first_process.pid}", "--net"]
        arguments = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "30", *curl]
        return subprocess.run([*enter, *arguments], capture_output=True, text=True, check=False)

    def wait_until_healthy(self, timeout_s: float) -> None:
        """Waits until the image's own health check passes."""
        deadline = time.monotonic() + timeout_s
        while True:
            assert self._process.poll() is None, f"it ended:\n{self.log}"
            outcome = self.execute(*self._image.health_command)
            if outcome.returncode == 0:
                return
            assert time.monotonic() < deadline, f"{outcome.stderr}\n{self.log}"
            time.sleep(0.5)

    def stop(self, signal_number: int, timeout_s: float) -> int:
        """Sends process 1 this signal; its exit status.

        Raises:
            TimeoutExpired: It does not heed it in time.
        """
        self.first_process.send_signal(signal_number)
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """Ends it at once, if it still runs; with process 1 the kernel ends all others."""
        if self._process.poll() is None:
            for process in psutil.Process(self._process.pid).children():
                process.kill()
        self._process.wait(10)
