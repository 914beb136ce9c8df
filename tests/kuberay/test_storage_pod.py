"""The pod of `kuberay/storage`, executed: what the README lets it do with SQLite and pictures."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from circles.storage.database import Database
from circles.storage.images import open_image_store
from circles.storage.records import RecordBook
from circles.storage.schema import migrate
from tests.kuberay.manifests import KUBERAY, find, rendered
from tests.kuberay.pods import Pod, PodNetwork
from tests.records import add, found
from tests.running import wait_until

# Those of a claim; of a bucket the last one is the same.
_COMMANDS = [*dict.fromkeys(re.findall(r"exec circles-storage -- (.*)", (KUBERAY / "README.md").read_text("utf-8")))]


@pytest.fixture
def pod(network: PodNetwork, tmp_path: Path) -> Iterator[Pod]:
    """It runs, as the manifest says; /data and /tmp are the folders `data` and `tmp`."""
    spec = find(rendered(KUBERAY / "storage" / "volume"), "Pod", "circles-storage")["spec"]
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["securityContext"]["runAsUser"] == Pod.user_id
    # /tmp last: these folders may lie below it.
    folders = {path: tmp_path / path[1:] for path in sorted(mount["mountPath"] for mount in container["volumeMounts"])}
    assert [*folders] == ["/data", "/tmp"]
    for folder in folders.values():
        folder.mkdir()
        _give_away(folder)
    variables = {each["name"]: each["value"] for each in container["env"]}
    program = f"touch /tmp/up; exec {shlex.join(container['command'])}"
    pod = Pod("storage", network, 2, program, variables, tmp_path / "log", bound_folders=folders)
    try:
        pod.start()
        wait_until((tmp_path / "tmp" / "up").exists)
        yield pod
    finally:
        pod.kill()


@contextmanager
def _book(folder: Path) -> Iterator[RecordBook]:
    """What is kept on a claim."""
    url = f"sqlite:///{folder}/db.sqlite3"
    migrate(url)
    database = Database(url)
    try:
        yield RecordBook(open_image_store(f"file:{folder}/images"), database, max_pending=100)
    finally:
        database.close()
        _give_away(folder)


def _give_away(folder: Path) -> None:
    """What fsGroup does."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, Pod.user_id, Pod.user_id)


def test_backup_comes_back_in_the_place_of_what_was_there(pod: Pod, tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "tmp" / "backup"
    with _book(data) as book:
        kept, _ = add(book, b"kept", found(0.9))
    written = pod.run(["python", "-m", "circles.storage", "backup", "--to", "/tmp/backup"])
    assert written.returncode == 0, written.stderr
    shutil.move(backup, tmp_path / "copied out")
    with _book(data) as book:
        later, _ = add(book, b"later", found(0.5))
    shutil.copytree(tmp_path / "copied out", backup)
    _give_away(backup)
    assert len(_COMMANDS) == 2
    for command in _COMMANDS:
        done = pod.run(shlex.split(command))
        assert done.returncode == 0, done.stdout + done.stderr
    assert "1 images restored" in done.stdout
    with _book(data) as book:
        assert book.load(book.get(kept.image_id)) == b"kept"
        assert book.find(later.image_id) is None
    with _book(data / "before") as book:
        assert book.load(book.get(later.image_id)) == b"later"
