"""The Open Inference Protocol: messages as KServe has them on the wire, and bodies that are none."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_messages

from circles.errors import InferenceInputError
from deployments.inference import open_inference_pb2 as messages
from deployments.inference.requests import TENSORS
from deployments.inference.v2_rest import join_elements, read_request, split_elements

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path("deployments") / "inference"


def test_generated_messages_are_those_of_the_proto_file(tmp_path: Path) -> None:
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*protoc, str(FOLDER / "open_inference.proto")], cwd=ROOT, check=True)
    for name in ("open_inference_pb2.py", "open_inference_pb2.pyi"):
        assert (tmp_path / FOLDER / name).read_text() == (ROOT / FOLDER / name).read_text(), "`just proto` renews them"


def kserve_descriptor(name: str) -> Descriptor:
    """KServe's message of this name, wherever it is nested."""
    tops = kserve_messages.DESCRIPTOR.message_types_by_name
    nested = [top.nested_types_by_name[name] for top in tops.values() if name in top.nested_types_by_name]
    found: Descriptor = tops.get(name) or nested[0]
    return found


@pytest.mark.parametrize("name", list(messages.DESCRIPTOR.message_types_by_name))
def test_fields_have_the_protocols_numbers_and_types(name: str) -> None:
    theirs = kserve_descriptor(name).fields_by_name
    for field in messages.DESCRIPTOR.message_types_by_name[name].fields:
        if field.name in ("double_param", "uint64_param"):  # in the protocol, but not in KServe's copy of it
            continue
        their = theirs[field.name]
        assert (field.number, field.type, field.is_repeated) == (their.number, their.type, their.is_repeated)


TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["YQ=="]}


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param({**TENSOR, "shape": [64], "data": ["YQ=="] * 64}, id="[N]"),
        pytest.param({**TENSOR, "shape": [64, 1], "data": [["YQ=="]] * 64}, id="[N, 1]"),
    ],
)
def test_a_request_may_have_64_pictures_and_ask_for_all_outputs(tensor: dict[str, Any]) -> None:
    body = {"inputs": [tensor], "outputs": [{"name": name} for name in TENSORS]}
    assert len(read_request(json.dumps(body).encode(), None, max_image_bytes=1000).request.images) == 64


def test_64_elements_are_split() -> None:
    assert split_elements(join_elements([b"a"] * 64)) == [b"a"] * 64


def refusal(**body: Any) -> str:
    """Why a request with this JSON is refused."""
    with pytest.raises(InferenceInputError) as refused:
        read_request(json.dumps({"inputs": [TENSOR], **body}).encode(), None, max_image_bytes=1000)
    return refused.value.detail


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"inputs": [0] * 1000}, id="inputs"),
        pytest.param({"inputs": [{**TENSOR, "shape": ["x"] * 1000}]}, id="shape"),
        pytest.param({"inputs": [{**TENSOR, "parameters": {str(key): [] for key in range(1000)}}]}, id="parameters"),
        pytest.param({"outputs": [0] * 1000}, id="outputs"),
    ],
)
def test_not_every_element_at_fault_makes_an_error(body: dict[str, Any]) -> None:
    """Each of pydantic's takes some hundred times the memory of what it speaks of."""
    assert not re.search(r"and [0-9]{2,} more", refusal(**body))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"inputs": [{**TENSOR, "name": "x" * 10**6}]}, id="name"),
        pytest.param({"inputs": [{**TENSOR, "datatype": "x" * 10**6}]}, id="datatype"),
        pytest.param({"inputs": [{**TENSOR, "shape": [10**4000]}]}, id="shape"),
        pytest.param({"inputs": [{**TENSOR, "parameters": {"binary_data_size": "x" * 10**6}}]}, id="size"),
        pytest.param({"parameters": {"x" * 10**6: []}}, id="parameter"),
        pytest.param({"outputs": [{"name": "x" * 10**6}]}, id="output"),
    ],
)
def test_long_words_are_not_repeated(body: dict[str, Any]) -> None:
    assert len(refusal(**body)) < 1000


def test_no_more_elements_are_split_than_a_request_may_have() -> None:
    with pytest.raises(InferenceInputError, match="more than 64 elements"):
        split_elements(bytes(10**6))
