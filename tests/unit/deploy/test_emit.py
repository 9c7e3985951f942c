"""What people run an engine with: known keys, a schema that parses it, a compiler that takes it."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from hypothesis import given
from hypothesis import strategies as st

from edgetl.deploy.emit import KINDS, Served, emit, parse_kinds
from edgetl.deploy.emit.cpp import literal
from edgetl.deploy.emit.served import plain_name
from edgetl.errors import InputError
from edgetl.spec import Fit, InputKind, Precision, Preprocess, Profile, image_input

DOUBLE = Path(__file__).parents[2] / "data/nvinfer"
# Of the [property] group in NVIDIA's Gst-nvinfer manual, those that a classifier may use.
NVINFER_KEYS = {
    "gpu-id",
    "gie-unique-id",
    "process-mode",
    "network-type",
    "model-engine-file",
    "onnx-file",
    "network-mode",
    "labelfile-path",
    "batch-size",
    "infer-dims",
    "network-input-order",
    "model-color-format",
    "net-scale-factor",
    "offsets",
    "maintain-aspect-ratio",
    "symmetric-padding",
    "scaling-filter",
    "scaling-compute-hw",
    "output-blob-names",
    "classifier-threshold",
    "classifier-async-mode",
    "interval",
    "operate-on-gie-id",
    "operate-on-class-ids",
    "secondary-reinfer-interval",
    "output-tensor-meta",
    "classifier-type",
    "workspace-size",
    "enable-dla",
    "use-dla-core",
}
MODEL = Served(
    name="flowers",
    labels=("daisy", "tulip", "a; rm -rf ~", 'qu"ote\\', "日本 ☂"),
    preprocess=Preprocess(size=96, resize=96, fit=Fit.STRETCH),
    profile=Profile.TRT10,
    precision=Precision.INT8,
    input=image_input(InputKind.FLOAT32, 96),
    output="probabilities",
    sha256="ab" * 32,
)
PLAIN = replace(MODEL, labels=("daisy", "tulip", "日本 ☂"))


def test_deepstream_speaks_known_keys_and_never_lets_nvinfer_build(tmp_path: Path) -> None:
    emit(("deepstream",), PLAIN, tmp_path)
    parser = configparser.ConfigParser()
    parser.read(tmp_path / "deepstream/config_infer.txt", encoding="utf-8")
    found = dict(parser["property"])
    assert set(found) <= NVINFER_KEYS
    assert "onnx-file" not in found
    assert found["infer-dims"] == "3;96;96" and found["net-scale-factor"] == "1.0" and found["network-type"] == "1"
    labels = (tmp_path / "deepstream" / found["labelfile-path"]).read_text(encoding="utf-8")
    assert tuple(labels.rstrip("\n").split(";")) == PLAIN.labels


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preprocess": Preprocess(size=96, resize=110)}, "--fit crop"),
        ({"preprocess": Preprocess(size=96, resize=96, fit=Fit.LETTERBOX)}, "--fit letterbox"),
        ({"output": "logits"}, "--output probabilities"),
        ({"input": image_input(InputKind.UINT8, 96)}, "uint8"),
        ({"labels": ("a;b", "c")}, "semicolons"),
        ({"profile": Profile.CPU}, "profile cpu"),
    ],
)
def test_deepstream_refuses_what_it_cannot_say_and_nothing_is_written(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        emit(("triton", "deepstream"), replace(PLAIN, **change), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# The messages of Triton's model_config.proto that a classifier's configuration uses: fields, types, enumerations.
SCHEMA = {
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "max_batch_size": "int32",
        "input": "ModelInput*",
        "output": "ModelOutput*",
        "instance_group": "ModelInstanceGroup*",
        "dynamic_batching": "ModelDynamicBatching",
    },
    "ModelInput": {"name": "string", "data_type": "DataType", "dims": "int64*"},
    "ModelOutput": {"name": "string", "data_type": "DataType", "dims": "int64*", "label_filename": "string"},
    "ModelInstanceGroup": {"name": "string", "kind": "Kind", "count": "int32"},
    "ModelDynamicBatching": {"preferred_batch_size": "int32*", "max_queue_delay_microseconds": "uint64"},
}
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_BOOL": 1, "TYPE_UINT8": 2, "TYPE_FP16": 10, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}


def model_config() -> Any:
    """An empty ModelConfig; tritonclient's whole schema parses the same text (seen once, with 2.73)."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for key, number in values.items():
            enum.value.add(name=key, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            made = message.field.add(name=field, number=number, label=3 if kind.endswith("*") else 1)
            plain = kind.rstrip("*")
            if plain in SCHEMA or plain in ENUMS:
                made.type_name = ".inference." + plain
            else:
                made.type = descriptor_pb2.FieldDescriptorProto.Type.Value("TYPE_" + plain.upper())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


@pytest.mark.parametrize("kind", list(InputKind))
@pytest.mark.parametrize("profile", [Profile.TRT10, Profile.CPU])
def test_triton_config_parses_against_its_schema(tmp_path: Path, kind: InputKind, profile: Profile) -> None:
    emit(("triton",), replace(MODEL, input=image_input(kind, 96), profile=profile), tmp_path)
    folder = tmp_path / "triton/flowers"
    found = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config())
    assert found.name == folder.name and found.max_batch_size == 8
    assert list(found.input[0].dims) == ([96, 96, 3] if kind is InputKind.UINT8 else [3, 96, 96])
    assert list(found.output[0].dims) == [len(MODEL.labels)]
    labels = (folder / found.output[0].label_filename).read_text(encoding="utf-8").splitlines()
    assert tuple(labels) == MODEL.labels
    assert (folder / "1").is_dir()


@pytest.mark.parametrize("kind", list(InputKind))
def test_cpp_example_passes_a_compiler(tmp_path: Path, kind: InputKind) -> None:
    compiler = shutil.which("g++")
    # The whole set of CUDA's headers comes with torch's triton.
    cuda = Path(sysconfig.get_paths()["purelib"]) / "triton/backends/nvidia/include"
    if compiler is None or not (cuda / "crt/host_defines.h").is_file():
        pytest.skip("no C++ compiler, or no CUDA headers")
    emit(("cpp",), replace(MODEL, input=image_input(kind, 96)), tmp_path)
    words = [compiler, "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", f"-I{DOUBLE}", f"-I{cuda}", "classify.cpp"]
    run = subprocess.run(words, cwd=tmp_path / "cpp", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_label_survives_as_a_cpp_literal(text: str) -> None:
    inner = literal(text)[1:-1]
    assert inner.isascii() and '"' not in inner
    assert inner.encode().decode("unicode_escape").encode("latin-1").decode("utf-8") == text


@given(st.text())
def test_names_are_harmless(text: str) -> None:
    name = plain_name(text)
    assert name and all(c.isascii() and (c.isalnum() or c in "_.-") for c in name) and name[0] not in "-."


def test_kinds_are_checked() -> None:
    assert parse_kinds("triton, deepstream,triton") == ("triton", "deepstream")
    for bad in ("", "tritn", "triton,x"):
        with pytest.raises(InputError, match="deepstream"):
            parse_kinds(bad)
    assert set(KINDS) == {"deepstream", "triton", "cpp", "python", "systemd", "docker"}
