"""The template's backend: FastAPI that keeps a file and rows of SQLite, and asks a KServe model server in base64 JSON.

``BACKEND_FOLDER=data MODEL_SERVER_URL=http://127.0.0.1:9090 uvicorn --factory
evaluation.benchmark.programs.template_backend:create_app``
"""

import base64
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, UploadFile

_TABLES = """
CREATE TABLE images (id TEXT PRIMARY KEY, filename TEXT, path TEXT);
CREATE TABLE objects (
    id TEXT PRIMARY KEY, image_id TEXT REFERENCES images, bbox TEXT, x REAL, y REAL, radius REAL, score REAL
);
CREATE INDEX objects_of_images ON objects (image_id);
"""
_TIMEOUT_S = 300.0


class _Storage:
    """A folder of files and an SQLite database with its defaults: one writer, rows synced at every commit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = folder / "backend.sqlite3"
        folder.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(self._database) as connection:
            connection.executescript(_TABLES)

    def save(self, image_bytes: bytes, filename: str | None) -> str:
        """Keeps the file and its row; the id of the image."""
        image_id = str(uuid.uuid4())
        path = self._folder / f"{image_id}.jpg"
        path.write_bytes(image_bytes)
        with sqlite3.connect(self._database, timeout=_TIMEOUT_S) as connection:
            connection.execute("INSERT INTO images VALUES (?, ?, ?)", (image_id, filename, str(path)))
        connection.close()
        return image_id

    def add_objects(self, image_id: str, predictions: list[dict[str, Any]]) -> None:
        """Keeps what was found in it."""
        rows = [
            (
                str(uuid.uuid4()),
                image_id,
                str(each["bounding_box"]),
                each["centroid"]["x"],
                each["centroid"]["y"],
                each["radius"]["radius"],
                each["score"],
            )
            for each in predictions
        ]
        with sqlite3.connect(self._database, timeout=_TIMEOUT_S) as connection:
            connection.executemany("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.close()


def create_app() -> FastAPI:
    """The application; where its data and its model server are stands in the environment."""
    storage = _Storage(Path(os.environ["BACKEND_FOLDER"]))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx2.AsyncClient(base_url=os.environ["MODEL_SERVER_URL"], timeout=_TIMEOUT_S) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {}

    @app.post("/images/", status_code=201)
    async def upload(request: Request, file: UploadFile) -> dict[str, Any]:
        image_bytes = await file.read()
        image_id = await run_sync(storage.save, image_bytes, file.filename)
        instances = [{"image": {"b64": base64.b64encode(image_bytes).decode()}}]
        answer = await request.app.state.client.post(
            "/v1/models/circle-detector:predict", json={"instances": instances, "parameters": {"format": "template"}}
        )
        predictions = answer.raise_for_status().json()["predictions"]
        await run_sync(storage.add_objects, image_id, predictions)
        return {"image_id": image_id, "count": len(predictions), "detections": predictions}

    return app
