"""BentoML, in an environment of its own: ``bentoml serve evaluation.benchmark.programs.bento:Detector --port 8000``."""

import threading
from pathlib import Path
from typing import Annotated, Any

import bentoml  # type: ignore[import-not-found, unused-ignore]  # installed in an environment of its own
from bentoml.validators import ContentType  # type: ignore[import-not-found, unused-ignore]

from evaluation.benchmark.programs.bare import answer_of, bare_detector


@bentoml.service(workers="cpu_count", traffic={"timeout": 60}, logging={"access": {"enabled": False}})  # type: ignore[untyped-decorator, unused-ignore]
class Detector:
    """One worker's detector."""

    def __init__(self) -> None:
        self._detector = bare_detector()
        self._turn = threading.Lock()  # a detector serves one caller at a time; BentoML calls from several threads

    @bentoml.api(route="/detect")  # type: ignore[untyped-decorator]
    def detect(self, file: Annotated[Path, ContentType("image/jpeg")]) -> dict[str, Any]:
        """What is in the uploaded picture."""
        image_bytes = file.read_bytes()
        with self._turn:
            (outcome,) = self._detector.detect([image_bytes])
        return answer_of(outcome)
