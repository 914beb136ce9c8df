"""KServe endpoints that are not ours: one that answers as it is told, and KServe's stock server."""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TEMPLATE_OBJECT = {
    "bounding_box": {"xmin": 10, "ymin": 20, "xmax": 110, "ymax": 120},
    "centroid": {"x": 60, "y": 70},
    "radius": {"radius": 50},
    "label": "coin",
    "score": 0.75,
}


class ScriptedEndpoint:
    """Speaks V1 alone. Answers with what it is told next, and then in the template's form."""

    def __init__(self, *script: Callable[[], Response]) -> None:
        self._script = deque(script)
        self.delays_s: deque[float] = deque()
        self.predictions: list[dict[str, Any]] = []
        """Bodies of the requests."""
        self.ports: set[int] = set()
        """Of its clients' connections."""
        self.requests = 0
        self.app = FastAPI()
        self.app.add_api_route("/v1/models/{name}:predict", self._predict, methods=["POST"])
        self.app.middleware("http")(self._count)

    async def _count(self, request: Request, call_next: Any) -> Response:
        self.requests += 1
        assert request.client is not None
        self.ports.add(request.client.port)
        response: Response = await call_next(request)
        return response

    async def _predict(self, request: Request) -> Response:
        self.predictions.append(await request.json())
        if self.delays_s:
            await asyncio.sleep(self.delays_s.popleft())
        if self._script:
            return self._script.popleft()()
        return JSONResponse({"predictions": [TEMPLATE_OBJECT]})


def serve_stock(http_port: int) -> None:
    """KServe's own server with a model in the template's form, until it is ended."""
    import kserve  # noqa: PLC0415 - tests that need only the class above do not wait for it

    class TemplateModel(kserve.Model):  # type: ignore[misc]  # the package is not typed
        def __init__(self) -> None:
            super().__init__("coin-detector")
            self.ready = True

        async def predict(self, payload: dict[str, Any], _headers: Any = None) -> dict[str, Any]:
            assert payload["instances"][0]["image"]["b64"]
            return {"predictions": [TEMPLATE_OBJECT]}

    kserve.ModelServer(http_port=http_port, enable_grpc=False).start([TemplateModel()])


if __name__ == "__main__":
    serve_stock(int(sys.argv[1]))
