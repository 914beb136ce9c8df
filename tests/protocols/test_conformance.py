"""KServe's clients get from every protocol what the detector says, and the truth about the model."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, RESTConfig

from circles.detection import ImageDetections
from circles.detectors import detector_info
from circles.detectors.encoded import EncodedDetector
from circles.settings import Settings
from tests.pictures import disc_jpeg, encode, two_discs
from tests.protocols.clients import MODEL, InferenceServer, Rows, ask, rows_of, v1_request

PROTOCOLS = ["v1", "v2 json", "v2 binary", "grpc"]
VERSION = detector_info("heatmap").version


def expected(detector: EncodedDetector, images: list[bytes], min_score: float) -> list[Rows]:
    """What the detector of this process says of every picture."""
    outcomes = detector.detect(images)
    assert all(isinstance(outcome, ImageDetections) for outcome in outcomes), outcomes
    return [
        rows_of([each for each in outcome.detections if each.score >= min_score])
        for outcome in outcomes
        if isinstance(outcome, ImageDetections)
    ]


def assert_same(server: InferenceServer, protocol: str, answers: list[Rows], expectations: list[Rows]) -> None:
    """The same to the last digit that the protocol sends: V1 has 64 bits a number, V2 has 32."""
    assert len(answers) == len(expectations)
    for answer, expectation in zip(answers, expectations, strict=True):
        has_all_bits = protocol == "v1" and not server.is_elsewhere
        sent = expectation if has_all_bits else expectation.astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(answer, sent)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_answers_what_the_detector_says(
    server: InferenceServer, detector: EncodedDetector, coins_val: Path, protocol: str
) -> None:
    """For all held-out photographs, in batches."""
    images = [path.read_bytes() for path in sorted(coins_val.glob("*.jpg"))]
    assert len(images) >= 20
    expectations = expected(detector, images, Settings().default_min_score)
    assert sum(map(len, expectations)) > len(images)
    for start in range(0, len(images), 10):
        batch = slice(start, start + 10)
        assert_same(server, protocol, ask(protocol, server, images[batch]), expectations[batch])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_threshold_is_a_parameter(server: InferenceServer, detector: EncodedDetector, protocol: str) -> None:
    images = [disc_jpeg(1), encode(np.zeros((40, 60, 3), np.uint8)), encode(two_discs(2).image, "PNG")]
    low, high = (ask(protocol, server, images, {"min_score": cut}) for cut in (0.1, 0.999))
    assert_same(server, protocol, low, expected(detector, images, 0.1))
    assert_same(server, protocol, high, expected(detector, images, 0.999))
    assert sum(map(len, low)) > sum(map(len, high))
    assert len(low[1]) == 0


def test_raw_picture_is_a_v1_request(server: InferenceServer) -> None:
    url = f"{server.url}/v1/models/{MODEL}:predict"
    raw = httpx2.post(url, content=disc_jpeg(1), headers={"Content-Type": "image/jpeg"}, timeout=60)
    assert raw.json() == httpx2.post(url, json=v1_request([disc_jpeg(1)]), timeout=60).json()
    png = encode(two_discs(1).image, "PNG")
    few = httpx2.post(f"{url}?min_score=1&label=coin", content=png, headers={"Content-Type": "image/png"}, timeout=60)
    assert few.json() == {"predictions": [[]]}


def test_objects_of_v1(server: InferenceServer) -> None:
    answer = httpx2.post(
        f"{server.url}/v1/models/{MODEL}:predict", json=v1_request([disc_jpeg(1)], {"label": "coin"}), timeout=60
    )
    (objects,) = answer.json()["predictions"]
    assert len(objects) == 2
    for each in objects:
        assert set(each) == {"label", "bbox", "centroid", "radius", "score"}
        assert each["label"] == "coin"
    assert float(answer.headers["prediction-time-latency"]) > 0


def test_client_of_the_template_gets_its_own_form(server: InferenceServer) -> None:
    """A flat list for its one picture, with whole numbers."""
    url = f"{server.url}/v1/models/{MODEL}:predict"
    own = httpx2.post(url, json=v1_request([disc_jpeg(1)]), timeout=60).json()["predictions"][0]
    template = httpx2.post(url, json=v1_request([disc_jpeg(1)], {"format": "template"}), timeout=60)
    assert template.json() == {
        "predictions": [
            {
                "bounding_box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(round, each["bbox"]), strict=True)),
                "centroid": {axis: round(each["centroid"][axis]) for axis in "xy"},
                "radius": {"radius": round(each["radius"])},
                "label": "circle",
                "score": each["score"],
            }
            for each in own
        ]
    }
    assert len(own) == 2


def test_metadata_tells_the_truth(server: InferenceServer) -> None:
    model = httpx2.get(f"{server.url}/v2/models/{MODEL}").json()
    assert model == httpx2.get(f"{server.url}/v2/models/{MODEL}/versions/{VERSION}").json()
    assert (model["name"], model["versions"]) == (MODEL, [VERSION])
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    body = {
        "id": "my request",
        "inputs": [
            {**model["inputs"][0], "shape": [1], "data": [v1_request([disc_jpeg(1)])["instances"][0]["image"]["b64"]]}
        ],
    }
    answer = httpx2.post(f"{server.url}/v2/models/{MODEL}/versions/{VERSION}/infer", json=body, timeout=60).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (MODEL, VERSION, "my request")
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert list(outputs) == [output["name"] for output in model["outputs"]]
    for promised in model["outputs"]:
        output = outputs[promised["name"]]
        assert output["datatype"] == promised["datatype"]
        assert output["shape"] == [2, *promised["shape"][1:]]
        assert len(output["data"]) == np.prod(output["shape"])


def test_outputs_can_be_chosen_one_by_one(server: InferenceServer) -> None:
    data = [v1_request([disc_jpeg(1)])["instances"][0]["image"]["b64"]]
    body = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}],
        "outputs": [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "image_index"}],
    }
    answer = httpx2.post(f"{server.url}/v2/models/{MODEL}/infer", json=body, timeout=60)
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert len(answer.content) == length + 2 * 4
    assert np.frombuffer(answer.content[length:], "<f4").min() > 0.5


def test_lists_and_health_over_rest(server: InferenceServer) -> None:
    paths = ["/v1/models", "/v2/models", f"/v1/models/{MODEL}", f"/v2/models/{MODEL}/ready", "/v2/health/live"]
    answers = [httpx2.get(server.url + path) for path in paths]
    assert [answer.status_code for answer in answers] == [200] * len(paths)
    assert answers[0].json() == answers[1].json() == {"models": [MODEL]}
    assert answers[2].json() == answers[3].json() == {"name": MODEL, "ready": True}
    extensions = httpx2.get(f"{server.url}/v2").json()["extensions"]
    assert "binary_tensor_data" in extensions
    can_load = httpx2.post(f"{server.url}/v2/repository/index").status_code == 200
    assert can_load == ("model_repository" in extensions)


def test_kserves_clients_ask_for_health(server: InferenceServer) -> None:
    async def answers() -> list[Any]:
        found: list[Any] = []
        for protocol in ("v1", "v2"):
            async with InferenceRESTClient(RESTConfig(protocol=protocol)) as client:
                found.append(await client.is_model_ready(server.url, MODEL))
                if protocol == "v2":
                    found += [await client.is_server_ready(server.url), await client.is_server_live(server.url)]
        async with InferenceGRPCClient(server.grpc_address, use_ssl=server.has_tls) as client:
            found += [await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready(MODEL)]
        return found

    assert asyncio.run(answers()) == [True] * 7


def test_documentation_lists_the_protocols(server: InferenceServer) -> None:
    page = httpx2.get(f"{server.url}/docs")
    assert page.status_code == 200
    # The page shows without anything from elsewhere.
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 3
    assert {httpx2.get(server.url + path).status_code for path in files} == {200}
    paths = httpx2.get(f"{server.url}/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith(("/v1", "/v2")) and "repository" not in path} == {
        "/v1/models",
        "/v1/models/{model_name}",
        "/v1/models/{model_name}:predict",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models",
        "/v2/models/{model_name}",
        "/v2/models/{model_name}/ready",
        "/v2/models/{model_name}/infer",
    }
