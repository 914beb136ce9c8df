"""BentoML, in an environment of its own: ``bentoml serve evaluation.benchmark.programs.bento:Detector --port 8000``."""

from pathlib import Path
from typing import Annotated, Any

import bentoml  # type: ignore[import-not-found, unused-ignore]  # installed in an environment of its own
from bentoml.validators import ContentType  # type: ignore[import-not-found, unused-ignore]

from evaluation.benchmark.programs.bare import answer_of, bare_detector


@bentoml.service(workers="cpu_count", traffic={"timeout": 60}, logging={"access": {"enabled": False}})  # type: ignore[untyped-decorator, unused-ignore]
class Detector:
    """One worker's detector. A worker calls it in one thread, unless told of more by ``threads``."""

    def __init__(self) -> None:
        self._detector = bare_detector()

    @bentoml.api(route="/detect")  # type: ignore[untyped-decorator]
    def detect(self, file: Annotated[Path, ContentType("image/jpeg")]) -> dict[str, Any]:
        """What is in the uploaded picture."""
        (outcome,) = self._detector.detect([file.read_bytes()])
        return answer_of(outcome)
