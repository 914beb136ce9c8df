"""The page for people, in a real browser, under its own policy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from circles.geometry import Circle
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg, draw_scene, encode
from tests.running import RunningApi, running_api, settings_in

FOUND = ((Circle(90, 110, 40), 0.9), (Circle(220, 130, 50), 0.7), (Circle(200, 60, 20), 0.2))


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """One on which nothing went wrong in the end."""
    said: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)  # which has a default of its own
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if "Content Security Policy" in message.text else None)
    yield page
    page.close()
    assert said == []


def serving(folder: Path, detector: GatedDetector | None = None, **settings: Any) -> Any:
    return running_api(settings_in(folder, min_score=0.5, **settings), detector or GatedDetector(FixedDetector(*FOUND)))


def choose(page: Page, *pictures: bytes, name: str = "disc.jpg", media_type: str = "image/jpeg") -> None:
    page.locator("#files").set_input_files(
        [FilePayload(name=f"{number} {name}", mimeType=media_type, buffer=each) for number, each in enumerate(pictures)]
    )


def assert_picture_is_shown(page: Page) -> None:
    expect(page.locator("#image")).to_have_js_property("naturalWidth", 320)


def test_pictures_are_uploaded_listed_and_looked_at(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        page.goto(api.url)
        expect(page.locator("#nothing")).to_be_visible()
        choose(page, *(disc_jpeg(seed) for seed in range(5)))
        expect(page.locator("#pictures li")).to_have_count(5)
        expect(page.locator("#uploads li")).to_have_count(0)
        expect(page.locator("#objects tbody tr")).to_have_count(2)
        assert_picture_is_shown(page)
        circles = page.locator("#circles circle")
        expect(circles).to_have_count(2)
        assert [circles.first.get_attribute(name) for name in ("cx", "cy", "r")] == ["90", "110", "40"]
        page.locator("#objects tbody tr").nth(1).hover()
        expect(circles.nth(1)).to_have_class("marked")
        page.locator("#score").fill("0.1")
        expect(circles).to_have_count(3)
        page.locator("#pictures a").nth(3).click()
        expect(page.locator("#pictures a[aria-current]")).to_have_count(1)
        page.reload()  # the address says which picture
        expect(page.locator("#name")).to_be_visible()
        page.locator("#delete").click()
        expect(page.locator("#pictures li")).to_have_count(4)
        expect(page.locator("#picture")).to_be_hidden()
        assert len(api.client.get("/images/").json()["items"]) == 4


def test_what_browsers_cannot_show_is_drawn_by_the_service(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        page.goto(api.url)
        choose(
            page, encode(draw_scene((Circle(90, 110, 40),)).image, "TIFF"), name="scan.tiff", media_type="image/tiff"
        )
        assert_picture_is_shown(page)


def test_pictures_that_are_pending_are_shown_when_they_are_done(page: Page, tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    detector.close_gate()
    with serving(tmp_path, detector, detection_timeout_s=0.3, reconcile_period_s=0.3) as api:
        page.goto(api.url)
        choose(page, disc_jpeg(1))
        expect(page.locator("#facts")).to_contain_text("is being looked at")
        detector.open_gate()
        expect(page.locator("#objects tbody tr")).to_have_count(2)
        assert_picture_is_shown(page)


def test_refusals_are_told(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        page.goto(api.url)
        choose(page, b"no picture", name="<b>notes</b>.txt", media_type="text/plain")
        expect(page.locator("#uploads .failed")).to_contain_text("<b>notes</b>.txt: ")
        page.goto(f"{api.url}/#{64 * '0'}")
        expect(page.get_by_role("alert")).to_contain_text("there is no image")


def test_a_key_is_asked_for_where_one_is_wanted(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path, api_keys="alpha") as api:
        page.goto(api.url)
        page.locator("#key").fill("guess")
        page.locator("#key-form button").click()
        expect(page.locator("#key-form")).to_be_visible()
        page.locator("#key").fill("alpha")
        page.locator("#key-form button").click()
        expect(page.locator("#key-form")).to_be_hidden()
        choose(page, disc_jpeg(1))
        assert_picture_is_shown(page)
        expect(page.locator("#pictures img[src^='blob:']")).to_have_count(1)


def test_older_pictures_are_listed_on_demand(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        upload_many(api, 35)
        page.goto(api.url)
        expect(page.locator("#pictures li")).to_have_count(30)
        page.locator("#more").click()
        expect(page.locator("#pictures li")).to_have_count(35)
        expect(page.locator("#more")).to_be_hidden()


def upload_many(api: RunningApi, count: int) -> None:
    for seed in range(count):
        assert api.client.post("/images/", files={"file": disc_jpeg(seed)}).status_code == 201
