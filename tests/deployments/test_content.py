"""How uploaded bytes are given back."""

from pathlib import Path

import httpx2
import pytest

from circles.settings import Settings
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import running_api
from tests.worlds import NAMES, World


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
        served = httpx2.get(redirection.headers["Location"])
        assert (served.content, served.headers["Content-Type"]) == (disc_jpeg(1), "image/jpeg")
        forged = httpx2.get(redirection.headers["Location"].replace("ig=", "ig=x").replace("ture=", "ture=0"))
        assert forged.status_code == 403
        assert api.client.get(f"{location}/annotated").status_code == 200
