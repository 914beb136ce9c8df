"""The messages of the Open Inference Protocol: made of their .proto, and the same on the wire as KServe's."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_messages

from deployments.inference import open_inference_pb2 as messages

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
