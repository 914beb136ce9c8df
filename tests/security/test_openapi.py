"""The service is asked what its OpenAPI document allows, and much that it does not; alone and in steps."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import Case, GenerationMode, Response
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from circles.detectors.encoded import EncodedDetector
from circles.geometry import Circle
from deployments.async_detectors import InProcessDetector
from tests.fakes import FixedDetector
from tests.pictures import disc_jpeg
from tests.running import RunningApi, running_api, settings_in

# The same requests in every run; a failure of one is a failure of all.
BOUNDED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=12,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

# No schema says which bytes are a picture, and which strings are one in base64.
_EXCLUDED: list[Any] = [positive_data_acceptance]


def _png(width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 20), "white").save(file, "PNG")
    return file.getvalue()


# Bytes at random are never a picture, and without one there is nothing to look at, to draw and to delete.
PICTURES = st.sampled_from([disc_jpeg(1), disc_jpeg(2), _png(30), _png(31)])
FILES = st.one_of(PICTURES, PICTURES, st.binary(max_size=200))
schemathesis.openapi.format("binary", FILES)
schemathesis.openapi.media_type("image/*", FILES)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    detector = EncodedDetector(FixedDetector((Circle(10, 10, 5), 0.9)), 10**7, min_score=0.1)
    folder: Path = tmp_path_factory.mktemp("openapi")
    with running_api(settings_in(folder), InProcessDetector(detector)) as api:
        yield api


@pytest.fixture(scope="module")
def document(running: RunningApi) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as documented", "otherwise"])
def test_every_operation_answers_as_documented(document: schemathesis.BaseSchema, mode: GenerationMode) -> None:
    """Status codes, content types, headers and bodies; and no answer is a failure of the service."""
    found = list(document.get_all_operations())
    operations = [operation.ok() for operation in found if isinstance(operation, Ok)]
    assert len(operations) == len(found) > 15

    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @BOUNDED
        def ask(case: Case[Any]) -> None:
            case.call_and_validate(excluded_checks=_EXCLUDED)

        with contextlib.suppress(Unsatisfiable):  # without parameters, there is no other way to ask
            ask()


@pytest.mark.timeout(180)
def test_steps_that_build_on_each_other_are_answered_as_documented(
    document: schemathesis.BaseSchema, running: RunningApi
) -> None:
    """Uploaded pictures are looked at, detected again, deleted, and looked at once more."""

    answered: set[tuple[str, str, int]] = set()

    class Steps(document.as_state_machine()):  # type: ignore[misc]  # it is made of the document
        def setup(self) -> None:
            """Every walk starts with nothing stored, so that the same steps have the same answers."""
            for image in running.client.get("/images/").json()["items"]:
                running.client.delete(f"/images/{image['image_id']}").raise_for_status()

        def validate_response(self, response: Response, case: Case[Any], **more: Any) -> None:
            answered.add((case.operation.method.upper(), case.operation.path, response.status_code))
            case.validate_response(response, excluded_checks=_EXCLUDED, **more)

    Steps.run(settings=settings(BOUNDED, max_examples=100, stateful_step_count=10))
    one = "/api/v1/images/{image_id}"
    reached = {(method, path) for method, path, status in answered if status in (200, 204)}
    assert {("GET", one), ("DELETE", one), ("GET", f"{one}/objects"), ("GET", f"{one}/content")} <= reached
