"""Exports behind TensorFlow Serving's interfaces, asked with its own protos and as the docs say."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from serving_texts import ODD_TEXTS

grpc = pytest.importorskip("grpc")
pytest.importorskip("tensorflow_serving")

from model_server import Ports, serving  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2  # noqa: E402

from cocolm_tf.serving.client import find_version  # noqa: E402
from cocolm_tf.serving.export import WARMUP_FILENAME  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "serving.md").read_text()
# The docs' models, by the names of the tests' exports.
NAMES = {
    "first": "pretrained",
    "reviews": "classifier",
    "ratings": "rater",
    "answers": "answerer",
    "names": "tagger",
}
TEXTS = ["The cat sat on it.", "It's 30.5%", "", "“The” others"]


@pytest.fixture(scope="module")
def server(exports: dict[str, Path]) -> Iterator[Ports]:
    with serving({name: exports[export] for name, export in NAMES.items()}) as ports:
        yield ports


@pytest.fixture(scope="module")
def stub(server: Ports) -> Iterator[Any]:
    with grpc.insecure_channel(f"localhost:{server.grpc}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predict_request(model: str, signature: str = "", **inputs: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


@pytest.mark.parametrize(
    ("model", "signature", "inputs"),
    [
        ("first", "", ["texts"]),
        ("first", "embed", ["texts"]),
        ("reviews", "classify", ["texts"]),
        ("reviews", "classify_pairs", ["first", "second"]),
        ("ratings", "classify", ["texts"]),
        ("answers", "answer", ["questions", "contexts"]),
    ],
)
def test_a_predict_request_comes_back_as_a_predict_response(
    stub: Any, load: Any, model: str, signature: str, inputs: list[str]
):
    asked = dict.fromkeys(inputs, TEXTS)
    response = stub.Predict(predict_request(model, signature, **asked))
    # Through the wire once more, as bytes.
    response = predict_pb2.PredictResponse.FromString(response.SerializeToString())
    assert response.model_spec.name == model
    assert response.model_spec.version.value == 1
    expected = load(NAMES[model])(signature or "correct", **asked)
    assert set(response.outputs) == set(expected)
    for name, value in expected.items():
        found = tf.make_ndarray(response.outputs[name])
        assert found.shape == value.shape
        if value.dtype == np.float32:
            np.testing.assert_allclose(found, value, atol=1e-5)
        else:
            np.testing.assert_array_equal(found, value)


def test_ids_go_through(stub: Any):
    ids = np.int32([[0, 7, 8, 2], [0, 9, 2, 1]])
    response = stub.Predict(predict_request("first", "embed_ids", token_ids=ids))
    vectors = tf.make_ndarray(response.outputs["embeddings"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


def example(first: str | bytes, second: str | None = None) -> tf.train.Example:
    found = tf.train.Example()
    first = first if isinstance(first, bytes) else first.encode()
    found.features.feature["first"].bytes_list.value.append(first)
    if second is not None:
        found.features.feature["second"].bytes_list.value.append(second.encode())
    return found


def test_classify_and_regress_take_examples(stub: Any, load: Any):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "reviews"
    request.model_spec.signature_name = "classify_examples"
    request.input.example_list.examples.extend(map(example, [*TEXTS, *ODD_TEXTS]))
    found = stub.Classify(request).result.classifications
    expected = load("classifier")("classify", texts=[*TEXTS, *ODD_TEXTS])
    scores = [[one.score for one in row.classes] for row in found]
    np.testing.assert_allclose(scores, expected["probabilities"], atol=1e-5)
    assert [one.label for one in found[0].classes] == ["bad", "neither", "good"]

    request = regression_pb2.RegressionRequest()
    request.model_spec.name = "ratings"
    request.model_spec.signature_name = "classify_examples"
    request.input.example_list.examples.append(example("The cat sat.", "It's late"))
    (found,) = stub.Regress(request).result.regressions
    pair = {"first": ["The cat sat."], "second": ["It's late"]}
    expected = load("rater")("classify_pairs", **pair)["values"]
    np.testing.assert_allclose([found.value], expected, atol=1e-5)


def test_metadata_and_status(server: Ports, stub: Any):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "answers"
    packed = stub.GetModelMetadata(request).metadata["signature_def"]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert packed.Unpack(signatures)
    answer = signatures.signature_def["answer"]
    assert set(answer.outputs) == set(signatures.signature_def["serving_default"].outputs)
    assert set(answer.inputs) == {"questions", "contexts"}
    with grpc.insecure_channel(f"localhost:{server.grpc}") as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "answers"
        status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
    assert [one.version for one in status.model_version_status] == [1]
    found = get(server, "/v1/models/first")
    assert found["model_version_status"][0]["state"] == "AVAILABLE"
    metadata = get(server, "/v1/models/first/metadata")["metadata"]["signature_def"]
    assert metadata["signature_def"]["embed"]["outputs"]["embeddings"]["dtype"] == "DT_FLOAT"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (predict_request("first", texts=[""] * 262_145), "a request may have 4194304 bytes"),
        (predict_request("answers", "answer", questions=["a"]), "contexts"),
        (predict_request("first", texts=[1.0]), "texts is not of type float"),
    ],
    ids=["too much", "missing", "type"],
)
def test_a_mistake_is_an_error_and_no_crash(stub: Any, request_: Any, words: str):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request_)
    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert words in caught.value.details()


def get(server: Ports, path: str) -> Any:
    with urllib.request.urlopen(f"http://localhost:{server.rest}{path}") as response:
        return json.load(response)


def post(server: Ports, path: str, content: Any) -> Any:
    body = json.dumps(content).encode()
    request = urllib.request.Request(f"http://localhost:{server.rest}/v1/models/{path}", body)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def test_rows_and_columns_say_the_same(server: Ports, load: Any):
    rows = post(server, "first:predict", {"instances": TEXTS})["predictions"]
    named = post(server, "first:predict", {"instances": [{"texts": text} for text in TEXTS]})
    columns = post(server, "first/versions/1:predict", {"inputs": {"texts": TEXTS}})["outputs"]
    assert rows == named["predictions"]
    assert post(server, "first:predict", {"inputs": TEXTS})["outputs"] == columns
    expected = load("pretrained")("correct", texts=TEXTS)
    for name, values in expected.items():
        assert [row[name] for row in rows] == columns[name]
        if values.dtype == object:
            values = np.vectorize(bytes.decode, otypes=[object])(values)
            assert columns[name] == values.tolist()
        else:
            np.testing.assert_allclose(columns[name], values, atol=1e-5)
    # "The cat", and a byte that is no UTF-8.
    binary = {"instances": [{"b64": "VGhlIGNhdCD/"}]}
    assert post(server, "first:predict", binary)["predictions"][0]["words"][:2] == ["The", "cat"]
    empty = post(server, "first:predict", {"signature_name": "embed", "inputs": {"texts": []}})
    assert empty["outputs"] == {"embeddings": [], "truncated": []}


def test_the_warm_up_requests_are_answered(server: Ports, exports: dict[str, Path]):
    for model, name in NAMES.items():
        folder, servable = exports[name], server.models.servables[model]
        path = Path(find_version(str(folder))) / WARMUP_FILENAME
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
        logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
        kinds = {log.WhichOneof("log_type") for log in logs}
        expected = {"classifier": "classify_log", "rater": "regress_log"}
        assert kinds == {"predict_log", *([expected[name]] if name in expected else [])}
        specs = [getattr(log, log.WhichOneof("log_type")).request.model_spec for log in logs]
        assert {spec.name for spec in specs} == {name}
        asked = {spec.signature_name for spec in specs}
        assert asked == set(servable.signatures) - {"serving_default", "__saved_model_init_op"}
        # Three lengths: the two buckets and the model's.
        assert len(logs) == 3 * len(asked)
        assert servable.num_warmups == len(logs)


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def at(server: Ports, snippet: str) -> str:
    return snippet.replace("localhost:8500", f"localhost:{server.grpc}").replace(
        "localhost:8501", f"localhost:{server.rest}"
    )


@pytest.mark.parametrize("snippet", snippets("python"))
def test_the_docs_python_runs(server: Ports, snippet: str, capsys: pytest.CaptureFixture[str]):
    exec(at(server, snippet), {})
    assert capsys.readouterr().out


CURLS = [snippet for snippet in snippets("sh") if "curl" in snippet]


@pytest.mark.parametrize("snippet", CURLS)
def test_the_docs_curl_runs(server: Ports, snippet: str):
    done = subprocess.run(
        ["bash", "-euc", at(server, snippet)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answers, decoder, place = [], json.JSONDecoder(), 0
    while place < len(done.stdout):
        answer, place = decoder.raw_decode(done.stdout, place)
        answers.append(answer)
    assert len(answers) == snippet.count("curl")
    assert all(answer.keys() <= {"predictions", "outputs", "results"} for answer in answers)


def test_the_docs_have_all_kinds_of_snippets():
    assert len(snippets("python")) == 3
    assert len(CURLS) == 5


def test_the_docs_configuration_is_one():
    from google.protobuf import text_format

    (config, monitoring) = snippets("text")
    found = text_format.Parse(config, model_server_config_pb2.ModelServerConfig())
    assert [one.name for one in found.model_config_list.config] == ["first", "reviews"]
    assert "prometheus_config" in monitoring
