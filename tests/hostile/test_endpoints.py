"""Model servers elsewhere whose answers would cost us much."""

import asyncio
import json
import re
from typing import Any

import numpy as np
import pytest
from fastapi.responses import JSONResponse

from circles.errors import DetectionFailedError, InferenceInputError
from circles.imaging import RGBImage, decode_image
from circles.settings import Settings
from deployments import remote_detector
from deployments.remote_answers import detections_of_v1
from deployments.remote_detector import RemoteDetector
from tests.endpoints import ScriptedEndpoint
from tests.pictures import disc_jpeg, encode
from tests.running import running_app


@pytest.mark.parametrize("predictions", [[0] * 1000, [[0] * 1000], [{}] * 1000])
def test_not_every_object_at_fault_makes_an_error(predictions: list[Any]) -> None:
    with pytest.raises(InferenceInputError) as refused:
        detections_of_v1(json.dumps({"predictions": predictions}).encode())
    assert not re.search(r"and [0-9]{3,} more", refused.value.detail)


def failures(status: int, image_bytes: bytes, count: int) -> list[Any]:
    """What becomes of so many pictures at once, all of which the endpoint refuses."""
    endpoint = ScriptedEndpoint(*[lambda: JSONResponse({"error": "no"}, status)] * count)

    async def detect(url: str) -> list[Any]:
        detector = RemoteDetector(Settings(model_server_url=url))
        try:
            return await asyncio.gather(*(detector.detect(image_bytes) for _ in range(count)), return_exceptions=True)
        finally:
            await detector.close()

    with running_app(endpoint.app) as url:
        return asyncio.run(detect(url))


def test_refused_pictures_are_decoded_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[int] = []
    most = 0

    def noted_decode(image_bytes: bytes, max_pixels: int) -> RGBImage:
        nonlocal most
        at_work.append(1)
        most = max(most, len(at_work))
        try:
            return decode_image(image_bytes, max_pixels)
        finally:
            at_work.pop()

    monkeypatch.setattr(remote_detector, "decode_image", noted_decode)
    large = encode(np.zeros((2000, 2000, 3), np.uint8))
    assert {type(error) for error in failures(400, large, 8)} == {DetectionFailedError}
    assert 1 <= most <= 2


def test_picture_that_is_too_large_elsewhere_is_not_decoded_here() -> None:
    (error,) = failures(413, disc_jpeg(1)[:-2000], 1)
    assert isinstance(error, DetectionFailedError)
