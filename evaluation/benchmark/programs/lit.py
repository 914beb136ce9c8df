"""LitServe, in an environment of its own: ``python -m evaluation.benchmark.programs.lit --port 8000``."""

import os
from typing import Annotated

import litserve  # type: ignore[import-not-found, unused-ignore]  # installed in an environment of its own
import typer
from fastapi import Request

from circles.detectors.encoded import DetectionOutcome
from evaluation.benchmark.programs.bare import answer_of, bare_detector


class DetectorApi(litserve.LitAPI):  # type: ignore[misc]
    """One worker's detector, without batches: on a CPU they only make answers wait for each other."""

    def setup(self, _device: str) -> None:
        self._detector = bare_detector()

    # LitServe reads the annotation, and hands over the form of a multipart request by that name.
    def decode_request(self, request: Request) -> bytes:
        image_bytes: bytes = request["file"].file.read()
        return image_bytes

    def predict(self, image_bytes: bytes) -> DetectionOutcome:
        return self._detector.detect([image_bytes])[0]

    def encode_response(self, outcome: DetectionOutcome) -> dict[str, object]:
        return answer_of(outcome)


def main(port: Annotated[int, typer.Option()]) -> None:
    """Serve on the loopback address, one worker a core."""
    api = DetectorApi(max_batch_size=1, api_path="/detect")
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=os.cpu_count() or 1, timeout=False, fast_queue=True
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
