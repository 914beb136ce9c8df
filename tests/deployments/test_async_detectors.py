"""The detector of this process: batches, and an end that leaves nobody waiting."""

import asyncio

import pytest

from circles.detection import ImageDetections
from circles.detectors.encoded import EncodedDetector
from circles.errors import BrokenImageError, DetectorUnavailableError
from circles.geometry import Circle
from deployments.async_detectors import InProcessDetector, detect_in_time
from tests.fakes import BlockedDetector, FixedDetector
from tests.pictures import disc_jpeg

FOUND = (Circle(90, 110, 40), 0.9)


def in_process(detector: FixedDetector, batch_size: int = 4) -> InProcessDetector:
    return InProcessDetector(EncodedDetector(detector, 10**9, 0.1), batch_size)


def test_what_comes_in_while_it_computes_is_the_next_batch() -> None:
    blocked = BlockedDetector(FOUND)

    async def ask() -> list[ImageDetections]:
        detector = in_process(blocked)
        asked = [asyncio.create_task(detector.detect(disc_jpeg(seed))) for seed in range(8)]
        assert await asyncio.to_thread(blocked.has_begun.wait, 10)
        blocked.release()
        return await asyncio.gather(*asked)

    assert len(asyncio.run(ask())) == 8
    assert blocked.batch_sizes == [1, 4, 3]


def test_caller_that_went_away_costs_nothing() -> None:
    blocked = BlockedDetector(FOUND)

    async def ask() -> None:
        detector = in_process(blocked)
        asked = [asyncio.create_task(detector.detect(disc_jpeg(seed))) for seed in range(4)]
        assert await asyncio.to_thread(blocked.has_begun.wait, 10)
        for gone in asked[:3]:
            gone.cancel()
        await asyncio.wait(asked[:3])
        blocked.release()
        await asked[3]

    asyncio.run(ask())
    assert blocked.batch_sizes == [1, 1]


def test_broken_picture_fails_alone() -> None:
    async def ask() -> tuple[ImageDetections | BaseException, ...]:
        detector = in_process(FixedDetector(FOUND))
        return await asyncio.gather(
            detector.detect(disc_jpeg(1)), detector.detect(disc_jpeg(1)[:-2000]), return_exceptions=True
        )

    good, broken = asyncio.run(ask())
    assert isinstance(good, ImageDetections)
    assert isinstance(broken, BrokenImageError)


def test_closing_answers_everybody() -> None:
    """The batch in work gets its detections, those who wait and those who come are refused."""
    blocked = BlockedDetector(FOUND)

    async def ask() -> list[ImageDetections | BaseException]:
        detector = in_process(blocked, batch_size=1)
        asked = [asyncio.create_task(detector.detect(disc_jpeg(seed))) for seed in range(2)]
        assert await asyncio.to_thread(blocked.has_begun.wait, 10)
        await detector.close()
        late = asyncio.create_task(detector.detect(disc_jpeg(3)))
        blocked.release()
        return await asyncio.gather(*asked, late, return_exceptions=True)

    in_work, waiting, late = asyncio.run(ask())
    assert isinstance(in_work, ImageDetections)
    assert isinstance(waiting, DetectorUnavailableError)
    assert isinstance(late, DetectorUnavailableError)


def test_time_limit() -> None:
    blocked = BlockedDetector(FOUND)
    with pytest.raises(DetectorUnavailableError, match=r"within 0\.05 s"):
        asyncio.run(detect_in_time(in_process(blocked), disc_jpeg(1), 0.05))
    blocked.release()
