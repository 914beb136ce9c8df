"""Disks that are full, read-only, gone or broken, and databases that are locked or damaged: told, and got over."""

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pysqlite3
import pytest

from circles.errors import DatabaseUnavailableError, StorageMismatchError
from circles.geometry import Circle
from circles.storage.folder import RESERVE_BYTES
from tests.chaos.disks import filled, read_only, small_disk
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import RunningApi, running_api, settings_in, wait_until
from tests.serving import running_serve

DISK_BYTES = RESERVE_BYTES + 4 * 2**20
RECOVERY_S = 5.0
"""In which the service works again, without a restart, once the fault is over."""


def upload(client: httpx2.Client, seed: int) -> httpx2.Response:
    return client.post("/images/", files={"file": disc_jpeg(seed)})


def assert_refused(client: httpx2.Client, seed: int, status: int, title: str) -> None:
    """As a problem that says when to come again, if coming again may help."""
    refused = upload(client, seed)
    assert (refused.status_code, refused.json()["title"]) == (status, title)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert status != 503 or refused.headers["Retry-After"]


def assert_reads_go_on(client: httpx2.Client, seed: int) -> None:
    path = f"/images/{hashlib.sha256(disc_jpeg(seed)).hexdigest()}"
    assert client.get(path).json()["status"] == "done"
    assert client.get(f"{path}/content").content == disc_jpeg(seed)
    assert client.get("/images/").status_code == 200
    assert client.get("/health").status_code == 200


def assert_recovers(client: httpx2.Client, seed: int) -> None:
    wait_until(lambda: upload(client, seed).status_code in (200, 201), timeout_s=RECOVERY_S)
    assert_reads_go_on(client, seed)
    wait_until(lambda: client.get("/ready").status_code == 200, timeout_s=RECOVERY_S)


def pictures_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "images").glob("??/*") if path.is_file()]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", DISK_BYTES) as folder:
        yield folder


@contextlib.contextmanager
def service(folder: Path, **changes: object) -> Iterator[RunningApi]:
    settings = settings_in(folder, orphan_grace_s=0).model_copy(update=changes)
    with running_api(settings, GatedDetector(FixedDetector((Circle(90, 110, 40), 0.9)))) as api:
        assert upload(api.client, 1).status_code == 201
        yield api


def test_full_disk_is_507_and_leaves_no_part(disk: Path) -> None:
    with service(disk) as api:
        with filled(disk):
            assert_refused(api.client, 2, 507, "Storage full")
            assert_reads_go_on(api.client, 1)
            assert len(pictures_in(disk)) == 1
            assert api.client.get("/ready").status_code == 503
        assert_recovers(api.client, 2)
        assert len(pictures_in(disk)) == 2


def test_disk_that_fills_up_keeps_what_was_acknowledged(disk: Path) -> None:
    """Until nothing fits: rows and files agree all the same, and pictures can be deleted."""
    with service(disk) as api:
        (disk / "something else").write_bytes(bytes(2 * 2**20))
        kept = [1]
        while (answer := upload(api.client, kept[-1] + 1)).status_code == 201:
            kept.append(kept[-1] + 1)
        assert (answer.status_code, answer.json()["title"]) == (507, "Storage full")
        for seed in kept:
            assert_reads_go_on(api.client, seed)
        api.services.book.sweep(0)
        assert len(pictures_in(disk)) == len(kept) > 10
        for seed in kept[:10]:  # which a full disk must allow
            assert api.client.delete(f"/images/{hashlib.sha256(disc_jpeg(seed)).hexdigest()}").status_code == 204
        (disk / "something else").unlink()  # small pictures give back less than the log of their deletion takes
        assert_recovers(api.client, kept[-1] + 2)


def test_full_disk_of_the_database_is_507(disk: Path, tmp_path: Path) -> None:
    with service(tmp_path, database_url=f"sqlite:///{disk}/db.sqlite3") as api:
        with filled(disk):
            answers = [upload(api.client, seed) for seed in range(2, 12)]
            full = [answer for answer in answers if answer.status_code != 201]
            assert full, "the write-ahead log had room for ten rows"
            assert {(answer.status_code, answer.json()["title"]) for answer in full} == {(507, "Storage full")}
            assert_reads_go_on(api.client, 1)
        assert_recovers(api.client, 20)


def test_read_only_storage_is_503_and_reads_go_on(tmp_path: Path) -> None:
    with service(tmp_path) as api:
        with read_only(tmp_path / "images"):
            assert_refused(api.client, 2, 503, "Storage unavailable")
            assert_reads_go_on(api.client, 1)
            assert "Read-only" in api.client.get("/ready").json()["checks"]["storage"]
        assert_recovers(api.client, 2)


def test_storage_folder_that_is_gone_is_503_and_no_picture_is_lost(tmp_path: Path) -> None:
    """As when a volume is unmounted: nobody is told that a picture does not exist."""
    with service(tmp_path) as api:
        (tmp_path / "images").rename(tmp_path / "elsewhere")
        assert_refused(api.client, 2, 503, "Storage unavailable")
        path = f"/images/{hashlib.sha256(disc_jpeg(1)).hexdigest()}"
        assert api.client.get(f"{path}/content").status_code == 503
        assert api.client.get(path).json()["status"] == "done"
        (tmp_path / "elsewhere").rename(tmp_path / "images")
        assert_recovers(api.client, 2)


def test_storage_folder_that_was_removed_is_told_until_it_is_back(tmp_path: Path) -> None:
    """With all that was in it: what can be said is that the storage is away, and later that bytes are gone."""
    with service(tmp_path) as api:
        shutil.rmtree(tmp_path / "images")
        assert_refused(api.client, 2, 503, "Storage unavailable")
        assert api.client.get("/ready").status_code == 503
        assert api.client.get("/images/").status_code == 200


def test_input_error_of_the_disk_is_503(tmp_path: Path) -> None:
    """The kernel answers EIO to who reads the first byte of a process's memory."""
    with service(tmp_path) as api:
        (picture,) = pictures_in(tmp_path)
        kept = picture.rename(picture.with_suffix(".kept"))
        picture.symlink_to("/proc/self/mem")
        path = f"/images/{hashlib.sha256(disc_jpeg(1)).hexdigest()}"
        for answer in (api.client.get(f"{path}/content"), api.client.post(f"{path}/detection")):
            assert (answer.status_code, answer.json()["title"]) == (503, "Storage unavailable")
        kept.rename(picture)
        assert_recovers(api.client, 2)


def test_database_locked_for_ten_seconds_loses_nothing(tmp_path: Path) -> None:
    """Those who wait are served or told to come again; those who read never notice."""
    with service(tmp_path) as api:
        holder = pysqlite3.connect(tmp_path / "db.sqlite3", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        unlocking = threading.Timer(10.0, holder.execute, ("ROLLBACK",))
        with ThreadPoolExecutor(4) as pool:
            unlocking.start()
            uploads = [pool.submit(upload, api.client, seed) for seed in range(2, 6)]
            while unlocking.is_alive():
                assert_reads_go_on(api.client, 1)
            answers = [future.result() for future in uploads]
        holder.close()
        for answer in answers:
            assert answer.status_code == 201 or answer.json()["title"] == "Database unavailable"
        for seed in range(2, 6):
            assert_recovers(api.client, seed)
        api.services.book.sweep(0)
        assert len(pictures_in(tmp_path)) == 5


def _flip_pages(path: Path) -> None:
    """Overwrites all but the first page, as a disk that forgets would."""
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def _flip_one_page(path: Path) -> None:
    """One that a start has no reason to read: the objects of some pictures."""
    content = bytearray(path.read_bytes())
    (page,) = pysqlite3.connect(path).execute("SELECT rootpage FROM sqlite_master WHERE name = 'objects'").fetchone()
    content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    path.write_bytes(content)


def _cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 4096 * 4096])


def _scribble(path: Path) -> None:
    path.write_bytes(b"this is no database, whatever its name says" * 500)


@pytest.mark.parametrize(
    "damage",
    [_flip_pages, _flip_one_page, _cut_in_half, _scribble],
    ids=["all pages", "one page", "half of it", "scribbled over"],
)
def test_damaged_database_is_refused_at_start_and_left_alone(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with service(tmp_path) as api:
        for seed in range(2, 20):
            upload(api.client, seed)
    path = tmp_path / "db.sqlite3"
    damage(path)
    before = path.read_bytes()
    pictures = pictures_in(tmp_path)
    with pytest.raises(DatabaseUnavailableError, match=r"damaged|not a database|malformed"), service(tmp_path):
        pass
    assert path.read_bytes() == before
    assert pictures_in(tmp_path) == pictures


def test_emptied_database_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """The pictures beside it would all be files that no row names."""
    with service(tmp_path):
        pass
    for name in ("db.sqlite3", "db.sqlite3-wal", "db.sqlite3-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(StorageMismatchError, match="another database"), service(tmp_path):
        pass
    assert len(pictures_in(tmp_path)) == 1


@pytest.mark.serve
@pytest.mark.control
def test_full_disk_under_serve_is_507_and_got_over(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        data = {"DATABASE_URL": f"sqlite:///{disk}/db.sqlite3", "STORAGE_URL": f"file:{disk}/images"}
        with running_serve(tmp_path, **data, MODE="dummy") as serve, serve.client() as client:
            assert upload(client, 1).status_code == 201
            with filled(disk):
                assert_refused(client, 2, 507, "Storage full")
                assert_reads_go_on(client, 1)
            assert_recovers(client, 2)
