"""Hostile files harm nobody: a seeded corpus thrown at the service by every door, and what the corpus is made of."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from circles.detectors.encoded import open_detector
from circles.imaging import decode_image, read_header
from deployments.async_detectors import InProcessDetector
from tests.conftest import SHARED
from tests.hostile.bases import HEIGHT, WIDTH, bases, scene
from tests.hostile.corpus import HostileFile, corpus, hostile_file_of
from tests.hostile.damages import DAMAGES, FORMATS
from tests.hostile.doors import Answer, opened_doors
from tests.hostile.driver import Findings, Target, files_in, throw
from tests.hostile.made import MADE
from tests.hostile.mutations import MUTATIONS
from tests.running import running_api, running_app, settings_in
from tests.serving import running_serve

# Outside of tests nobody makes errors of Pillow's warnings, so what it reads over there is read over here.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

POLICY = Path(__file__).resolve().parent.parent.parent / "docs" / "damaged-pictures.md"
NOT_POSSIBLE = "\N{EN DASH}"
MAX_PIXELS = 50_000_000
PATIENCE_S = 10.0
"""Speed is judged by the driver's own command, on a machine that does nothing else; here only endlessness is."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The service in this process, with the default detector."""
    settings = settings_in(tmp_path_factory.mktemp("hostile"))
    environment = {"DATABASE_URL": settings.database_url, "STORAGE_URL": settings.storage_url}
    with running_api(settings, InProcessDetector(open_detector(settings))) as api:
        yield Target(api.url, process_ids=lambda: {"service": {os.getpid()}}, environment=environment)


def assert_harmless(found: Findings, files: int) -> None:
    assert not found.breaches, "\n".join(found.breaches)
    assert found.files == files


@pytest.mark.parametrize("name", sorted(bases()))
def test_files_that_others_are_made_from_are_whole(name: str) -> None:
    image = decode_image(bases()[name], MAX_PIXELS)
    if image.shape[0] > image.shape[1]:
        assert image.shape == (WIDTH, HEIGHT, 3)
    else:
        assert image.shape == (HEIGHT, WIDTH, 3)
        # Grey, dithered, half transparent (on white, so the dark is brighter than the bright): the discs are there.
        shown, expected = (np.asarray(picture).mean(axis=2).ravel() for picture in (image, scene()))
        is_mirrored = name in ("jpeg-exif2", "jpeg-exif3")
        assert is_mirrored or abs(np.corrcoef(shown, expected)[0, 1]) > 0.3


def test_corpus_is_the_same_for_the_same_seed() -> None:
    first, again, other = ([file.content for file in corpus(seed, 120)] for seed in (5, 5, 6))
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 100


def test_file_is_made_again_from_its_name() -> None:
    for file in corpus(7, 40):
        assert hostile_file_of(file.name) == file


def test_some_hundred_files_have_all_kinds() -> None:
    files = list(corpus(1, 3 * len(MADE)))
    assert {file.kind for file in files} == {*MADE, *MUTATIONS}
    assert len({file.name for file in files}) == len(files)
    formats = {file.name.rsplit("-", 2)[-2] for file in files if file.kind in MUTATIONS}
    assert formats == {"jpeg", "png", "webp", "bmp", "tiff", "gif"}


def test_corpus_is_neither_all_refused_nor_all_accepted() -> None:
    """Files that are refused by their first bytes would try nothing."""
    verdicts = []
    for file in corpus(2, 300):
        try:
            read_header(file.content, MAX_PIXELS)
        except Exception as error:  # noqa: BLE001
            verdicts.append(type(error).__name__)
        else:
            verdicts.append("header read")
    assert verdicts.count("header read") > 100
    assert {*verdicts} == {"header read", "BrokenImageError", "UnsupportedImageError", "ImageTooLargeError"}


@pytest.mark.timeout(300)
def test_hostile_files_harm_nobody(target: Target) -> None:
    files = 3 * len(MADE)
    found = asyncio.run(throw(corpus(1, files), target, answer_s=PATIENCE_S))
    assert {*found.kinds} == {*MADE, *MUTATIONS}
    assert {verdict for verdicts in found.kinds.values() for verdict in verdicts} >= {"accepted", "refused"}
    assert_harmless(found, files)


@pytest.mark.timeout(300)
def test_public_corpora_harm_nobody(tmp_path: Path) -> None:
    """Every seventh of their files; `--folder` throws all."""
    folder = SHARED / "hostile"
    files = files_in(folder)[::7] if folder.is_dir() else []
    if not files:
        pytest.skip(f"there are no public corpora in {folder}")
    settings = settings_in(tmp_path)
    environment = {"DATABASE_URL": settings.database_url, "STORAGE_URL": settings.storage_url}
    with running_api(settings, InProcessDetector(open_detector(settings))) as api:
        found = asyncio.run(throw(files, Target(api.url, environment=environment), answer_s=PATIENCE_S))
    assert_harmless(found, len(files))


@pytest.mark.serve
@pytest.mark.timeout(300)
def test_hostile_files_harm_no_replica(tmp_path: Path) -> None:
    """Behind Serve's proxy, and by gRPC too."""
    with running_serve(tmp_path, DETECTOR_MAX_REPLICAS="1") as service:
        target = Target(service.url, service.grpc_address, service.replica_pids, service.environment)
        found = asyncio.run(throw(corpus(3, 160), target, answer_s=PATIENCE_S))
    assert any(status.startswith("gRPC OK") for status in found.statuses)
    assert {name.split()[0] for name in found.memory_bytes} == {"Ingress", "Detector"}
    assert_harmless(found, 160)


def test_harm_is_noticed(tmp_path: Path) -> None:
    """By a driver that faces a service which answers errors, loses pictures and has no data."""
    app = FastAPI()

    @app.get("/config")
    async def config() -> dict[str, float]:
        return {"detection_timeout_s": 10.0}

    @app.get("/images/")
    async def pending() -> dict[str, list[object]]:
        return {"items": []}

    @app.post("/images/")
    async def upload() -> JSONResponse:
        return JSONResponse({"image_id": "gone", "status": "done"}, 201)

    with running_app(app) as url:
        files = [HostileFile("s1-000000-a", "a", b"x")]
        target = Target(url, environment={"DATABASE_URL": f"sqlite:///{tmp_path}/none", "STORAGE_URL": "file:/none"})
        breaches = asyncio.run(throw(files, target)).breaches
    for door in ("batch", "V1 raw", "V1 base64", "V2 JSON", "V2 binary"):
        assert any(f"{door} answered 404" in breach for breach in breaches)
    for sign in ("/health answers 404", "its objects answer 404", "storage check, 1 images expected"):
        assert any(sign in breach for breach in breaches)


def _policy() -> list[tuple[str, str, str]]:
    """Damage, format and verdict of every cell of the policy's table."""
    rows = [line.strip("| \n").split(" | ") for line in POLICY.read_text(encoding="utf-8").split("\n")]
    start = next(index for index, row in enumerate(rows) if row[0] == "damage")
    names = rows[start][1:]
    cells = []
    for row in rows[start + 2 :]:
        if len(row) == 1:
            break
        cells += [(row[0], name, verdict) for name, verdict in zip(names, row[1:], strict=True)]
    return cells


def test_policy_speaks_of_every_damage_and_format() -> None:
    assert [(damage, name) for damage, name, _ in _policy()] == [
        (damage, name) for damage in DAMAGES for name in FORMATS
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_policy_is_what_every_door_does(target: Target, damage: str) -> None:
    async def answers(content: bytes) -> list[Answer]:
        async with opened_doors(target.url, target.grpc_address) as doors:
            return [await door(content, "x") for door in doors.values()]

    for name, verdict in [(name, verdict) for each, name, verdict in _policy() if each == damage]:
        content = DAMAGES[damage](name)
        if content is None:
            assert verdict == NOT_POSSIBLE
            continue
        said = asyncio.run(answers(content))
        assert {answer.verdict for answer in said} == {verdict}, (name, said)
