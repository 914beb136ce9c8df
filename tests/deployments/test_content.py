"""How uploaded bytes are given back."""

from pathlib import Path

import httpx2
import pytest

from circles.settings import Settings
from circles.storage.image_records import ImageRecord
from circles.storage.images import new_key, open_image_store
from circles.storage.records import RecordBook
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import running_api, settings_in
from tests.worlds import NAMES, World


def test_head_reads_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed: list[ImageRecord] = []
    monkeypatch.setattr(RecordBook, "stream", lambda _, record: streamed.append(record))
    with running_api(settings_in(tmp_path), GatedDetector(FixedDetector())) as api:
        location = api.client.post("/images/", files={"file": disc_jpeg(1)}).headers["Location"]
        head = api.client.head(f"{location}/content")
    assert (head.status_code, int(head.headers["Content-Length"])) == (200, len(disc_jpeg(1)))
    assert not streamed


@pytest.mark.parametrize("world", NAMES[1:], indirect=True)
def test_clients_are_led_to_the_bucket(world: World, tmp_path: Path) -> None:
    place = world.new_place(tmp_path)
    settings = Settings(
        database_url=place.database_url, storage_url=place.storage_url, content_delivery="redirect", signed_url_s=60
    )
    with running_api(settings, GatedDetector(FixedDetector())) as api:
        location = api.client.post("/images/", files={"file": disc_jpeg(1)}).headers["Location"]
        redirection = api.client.get(f"{location}/content")
        assert (redirection.status_code, redirection.headers["Cache-Control"]) == (307, "no-store")
        head = api.client.head(f"{location}/content")  # the address is signed for GET
        assert (head.status_code, int(head.headers["Content-Length"])) == (200, len(disc_jpeg(1)))
        served = httpx2.get(redirection.headers["Location"])
        assert (served.content, served.headers["Content-Type"]) == (disc_jpeg(1), "image/jpeg")
        forged = httpx2.get(redirection.headers["Location"].replace("ig=", "ig=x").replace("ture=", "ture=0"))
        assert forged.status_code == 403
        assert api.client.get(f"{location}/annotated").status_code == 200


def test_clients_that_do_not_read_hold_little_memory(world: World, tmp_path: Path) -> None:
    """Two pieces each."""
    store = open_image_store(world.new_place(tmp_path).storage_url)
    key, content = new_key("00"), bytes(5 * 2**20)
    store.save(key, content, "image/jpeg")
    pieces = list(store.stream(key))
    assert max(map(len, pieces)) <= 2**20
    assert b"".join(pieces) == content
