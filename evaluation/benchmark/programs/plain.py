"""Plain FastAPI with the detector inside, run by uvicorn in as many workers as there are cores; nothing is stored.

``uvicorn --factory evaluation.benchmark.programs.plain:create_app --workers 2``
"""

import threading
from typing import Any

from fastapi import FastAPI, UploadFile

from evaluation.benchmark.programs.bare import answer_of, bare_detector


def create_app() -> FastAPI:
    """One worker's application."""
    app = FastAPI()
    detector = bare_detector()
    turn = threading.Lock()  # a detector serves one caller at a time

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {}

    # Not a coroutine: FastAPI gives it to a thread, so that the event loop goes on receiving.
    @app.post("/detect")
    def detect(file: UploadFile) -> dict[str, Any]:
        image_bytes = file.file.read()
        with turn:
            (outcome,) = detector.detect([image_bytes])
        return answer_of(outcome)

    return app
