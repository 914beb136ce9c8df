"""``python -m serve_app.protocols``: what each way to the detector costs, in bytes on the wire and in time.

Starts the application on ports of its own and asks it for one picture after the other, the ways taking turns, so that
whatever else the machine does meets all of them alike.
"""

import asyncio
import contextlib
import json
import logging
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import httpx2
import typer
from anyio.from_thread import start_blocking_portal
from dotenv import dotenv_values
from rich.progress import track

from circles.settings import Settings
from deployments.inference import open_inference_pb2 as messages
from deployments.inference import v1, v2_rest
from deployments.inference.requests import INPUT_DATATYPE, INPUT_NAME
from deployments.inference.v2_grpc import SERVICE_NAME
from serve_app.local import LocalService, Ports
from serve_app.processes import ROOT, free_port, free_ports

_MODEL = Settings.model_fields["model_name"].default
_WARM_UP_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one request for one picture by one way: bytes there and back, and the milliseconds of each try."""

    name: str
    sent_bytes: int
    received_bytes: int
    milliseconds: tuple[float, ...]


Ask = Callable[[bytes], object]


def measure(picture: bytes, rounds: int) -> list[Cost]:
    """What the ways cost for this picture.

    Args:
        rounds: How often each way is gone.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        _running_application(Path(folder)) as (ports, ray_address),
        contextlib.ExitStack() as stack,
    ):
        relays = {port: stack.enter_context(_counting_relay(port)) for port in (ports.http, ports.grpc)}
        counted = stack.enter_context(_opened_ways(relays[ports.http].port, relays[ports.grpc].port))
        sizes: dict[str, tuple[int, int]] = {}
        for name, ask in counted.items():
            ask(picture)  # connects
            for relay in relays.values():
                relay.reset()
            ask(picture)
            sizes[name] = (
                sum(relay.sent for relay in relays.values()),
                sum(relay.received for relay in relays.values()),
            )
        ways = stack.enter_context(_opened_ways(ports.http, ports.grpc))
        ways["Serve handle"] = handle = stack.enter_context(_opened_handle(ray_address))
        sizes["Serve handle"] = (len(pickle.dumps(picture)), len(pickle.dumps(handle(picture))))
        times: dict[str, list[float]] = {name: [] for name in ways}
        for round_number in track(range(-_WARM_UP_ROUNDS, rounds), "measuring"):
            for name, ask in ways.items():
                start = time.perf_counter()
                ask(picture)
                if round_number >= 0:
                    times[name].append((time.perf_counter() - start) * 1000)
    return [Cost(name, *sizes[name], tuple(times[name])) for name in ways]


@contextlib.contextmanager
def _running_application(folder: Path) -> Iterator[tuple[Ports, str]]:
    """Its ports, and the address of its Ray."""
    service = LocalService(folder / "run", name="protocols")
    variables = {"DATABASE_URL": f"sqlite:///{folder}/db.sqlite3", "STORAGE_URL": f"file:{folder}/images"}
    ports = Ports(*free_ports(4))
    try:
        service.start({"MODE": "real", "DETECTOR_MAX_REPLICAS": "1", **variables}, ports)
        yield ports, service.ray_address
    finally:
        service.stop()


@contextlib.contextmanager
def _opened_ways(http_port: int, grpc_port: int) -> Iterator[dict[str, Ask]]:
    """The protocols' ways by name, over one connection each."""
    limit = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with (
        httpx2.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=60, trust_env=False) as client,
        grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options=limit) as channel,
    ):
        infer = channel.unary_unary(
            f"/{SERVICE_NAME}/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )
        yield {
            "V1, base64 in JSON": lambda picture: _post(client, _v1_path(), v1.write_request([picture], {}), {}),
            "V2, base64 in JSON": lambda picture: _post(client, _v2_path(), _v2_json(picture), {}),
            "V1, raw picture": lambda picture: _post(client, _v1_path(), picture, {"Content-Type": "image/jpeg"}),
            "V2, binary tensors": lambda picture: _post(client, _v2_path(), *_v2_binary(picture)),
            "V2 over gRPC": lambda picture: infer(_grpc_request(picture), timeout=60),
        }


def _v1_path() -> str:
    return f"/v1/models/{_MODEL}:predict"


def _v2_path() -> str:
    return f"/v2/models/{_MODEL}/infer"


def _post(client: httpx2.Client, path: str, content: bytes, headers: dict[str, str]) -> bytes:
    return client.post(path, content=content, headers=headers).raise_for_status().content


def _v2_json(picture: bytes) -> bytes:
    (data,) = (instance["image"]["b64"] for instance in json.loads(v1.write_request([picture], {}))["instances"])
    return json.dumps(
        {"inputs": [{"name": INPUT_NAME, "datatype": INPUT_DATATYPE, "shape": [1], "data": [data]}]}
    ).encode()


def _v2_binary(picture: bytes) -> tuple[bytes, dict[str, str]]:
    body, header_length = v2_rest.write_request([picture], {})
    return body, {"Content-Type": v2_rest.BINARY_MEDIA_TYPE, v2_rest.HEADER_LENGTH: str(header_length)}


def _grpc_request(picture: bytes) -> messages.ModelInferRequest:
    tensor = messages.InferInputTensor(name=INPUT_NAME, datatype=INPUT_DATATYPE, shape=[1])
    return messages.ModelInferRequest(
        model_name=_MODEL, inputs=[tensor], raw_input_contents=[v2_rest.join_elements([picture])]
    )


@contextlib.contextmanager
def _opened_handle(ray_address: str) -> Iterator[Ask]:
    """The way that the ingress goes: a handle to the detector replicas, here from a driver beside them."""
    # As the application runs, and before Ray reads them at its import.
    os.environ.update({key: value for key, value in dotenv_values(ROOT / "serve.env").items() if value is not None})
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray  # noqa: PLC0415
    from ray import serve  # noqa: PLC0415

    ray.init(address=ray_address, log_to_driver=False, logging_level=logging.ERROR)
    handle: Any = serve.get_deployment_handle("Detector", "circles")

    async def ask(picture: bytes) -> object:
        return await handle.detect.remote(picture)

    try:
        with start_blocking_portal() as portal:  # on the fast path a handle lives in the event loop of its caller
            yield lambda picture: portal.call(ask, picture)
    finally:
        ray.shutdown()


class _Relay:
    """Passes bytes on between a port of its own and another one, and counts them."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target_port = target_port
        self.sent = self.received = 0

    def reset(self) -> None:
        """Counts from nothing."""
        self.sent = self.received = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Relays until left."""
        async with await asyncio.start_server(self._relay, "127.0.0.1", self.port):
            yield

    async def _relay(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        await asyncio.gather(
            self._pump(client_reader, writer, is_request=True), self._pump(reader, client_writer, is_request=False)
        )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool) -> None:
        while chunk := await reader.read(2**16):
            if is_request:
                self.sent += len(chunk)
            else:
                self.received += len(chunk)
            writer.write(chunk)
            await writer.drain()
        writer.close()


@contextlib.contextmanager
def _counting_relay(target_port: int) -> Iterator[_Relay]:
    relay = _Relay(target_port)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(relay.serving()):
        yield relay


def table_of(costs: list[Cost]) -> str:
    """The costs as a Markdown table."""
    least = min(statistics.median(cost.milliseconds) for cost in costs)
    lines = ["| way | bytes sent | bytes received | ms (median) | ms (95th percentile) | times the cheapest |"]
    lines.append("|---|---|---|---|---|---|")
    for cost in costs:
        median = statistics.median(cost.milliseconds)
        late = statistics.quantiles(cost.milliseconds, n=20)[-1]
        lines.append(
            f"| {cost.name} | {cost.sent_bytes:,} | {cost.received_bytes:,} | {median:.1f} | {late:.1f} | "
            f"{median / least:.2f} |"
        )
    return "\n".join(lines)


def main(
    picture: Annotated[Path, typer.Argument(help="JPEG file to ask for.")],
    rounds: Annotated[int, typer.Option(min=2, help="How often each way is gone.")] = 100,
) -> None:
    """Print what each way to the detector costs for one picture, as a Markdown table."""
    image_bytes = picture.read_bytes()
    typer.echo(
        f"{picture.name}, {len(image_bytes):,} bytes, {rounds} rounds\n\n{table_of(measure(image_bytes, rounds))}"
    )


if __name__ == "__main__":
    typer.run(main)
