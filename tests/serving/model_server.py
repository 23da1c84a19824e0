"""TensorFlow Serving as far as a client sees it, for tests: gRPC and REST over SavedModels.

Models run as TensorFlow Serving runs them, in a session, by the names of the tensors in their
signature definitions (tensorflow_serving/servables/tensorflow, util/json_tensor.cc). What is asked
wrongly is refused, but not in its words.
"""

import base64
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (its operations are in the graph)
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

_DEFAULT = "serving_default"


class Servable:
    """One version of a model, loaded and warmed up."""

    def __init__(self, name: str, folder: Path) -> None:
        versions = [path for path in folder.iterdir() if path.name.isdecimal()]
        path = max(versions, key=lambda path: int(path.name))
        self.name, self.version = name, int(path.name)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
        self.signatures = meta_graph.signature_def
        self.num_warmups = self._warm_up(path / "assets.extra" / "tf_serving_warmup_requests")

    def _warm_up(self, path: Path) -> int:
        calls = {"predict_log": self.predict, "classify_log": self.classify}
        calls["regress_log"] = self.regress
        count = 0
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            calls[kind](getattr(log, kind).request)
            count += 1
        return count

    def signature(self, request: Any) -> Any:
        name = request.model_spec.signature_name or _DEFAULT
        if name not in self.signatures:
            raise ValueError(f"there is no signature {name}")
        return self.signatures[name]

    def run(self, signature: Any, inputs: dict[str, np.ndarray], outputs: list[str]) -> list:
        if set(inputs) != set(signature.inputs):
            raise ValueError(f"the inputs are {sorted(signature.inputs)}, not {sorted(inputs)}")
        for name, value in inputs.items():
            if tf.as_dtype(value.dtype) != tf.as_dtype(signature.inputs[name].dtype):
                raise ValueError(f"{name} is not of type {value.dtype}")
        feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
        return self._session.run([signature.outputs[name].name for name in outputs], feeds)

    def predict(self, request: Any) -> Any:
        signature = self.signature(request)
        wanted = list(request.output_filter) or sorted(signature.outputs)
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        response = self._response(predict_pb2.PredictResponse, request)
        for name, value in zip(wanted, self.run(signature, inputs, wanted), strict=True):
            dtype = tf.as_dtype(signature.outputs[name].dtype)
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
        return response

    def classify(self, request: Any) -> Any:
        classes, scores = self._of_examples(request, "classify", ["classes", "scores"])
        response = self._response(classification_pb2.ClassificationResponse, request)
        for labels, row in zip(classes, scores, strict=True):
            classifications = response.result.classifications.add()
            for label, score in zip(labels, row, strict=True):
                classifications.classes.add(label=label, score=score)
        return response

    def regress(self, request: Any) -> Any:
        (values,) = self._of_examples(request, "regress", ["outputs"])
        response = self._response(regression_pb2.RegressionResponse, request)
        for value in values:
            response.result.regressions.add(value=value)
        return response

    def _of_examples(self, request: Any, interface: str, outputs: list[str]) -> list:
        signature = self.signature(request)
        if signature.method_name != f"tensorflow/serving/{interface}":
            raise ValueError(f"the signature is for {signature.method_name}, not {interface}")
        examples = [example.SerializeToString() for example in request.input.example_list.examples]
        return self.run(signature, {"inputs": np.array(examples, object)}, outputs)

    def metadata(self, request: Any) -> Any:
        response = self._response(get_model_metadata_pb2.GetModelMetadataResponse, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in self.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request: Any) -> Any:
        response = get_model_status_pb2.GetModelStatusResponse()
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        response.model_version_status.add(state=available, version=self.version)
        return response

    def _response(self, kind: Callable[[], Any], request: Any) -> Any:
        response = kind()
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = request.model_spec.signature_name or _DEFAULT
        return response


class Models:
    """All models of a server: each the highest version in its folder."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.servables = {name: Servable(name, folder) for name, folder in folders.items()}

    def get(self, model_spec: Any) -> Servable:
        servable = self.servables.get(model_spec.name)
        if servable is None or model_spec.version.value not in (0, servable.version):
            raise KeyError(f"there is no such servable: {model_spec.name}")
        return servable

    def answer(self, method: str, request: Any) -> Any:
        return getattr(self.get(request.model_spec), method)(request)


def _rpc(method: str) -> Callable[..., Any]:
    def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return self.models.answer(method, request)
        except KeyError as error:
            return context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            return context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return call


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: Models) -> None:
        self.models = models

    Predict, Classify, Regress = _rpc("predict"), _rpc("classify"), _rpc("regress")
    GetModelMetadata = _rpc("metadata")


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Models) -> None:
        self.models = models

    GetModelStatus = _rpc("status")


class _RestHandler(http.server.BaseHTTPRequestHandler):
    models: Models
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        match = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata)?", self.path)
        request = _request(predict_pb2.PredictRequest, *match.groups()[:2])
        response = self.models.answer("metadata" if match[3] else "status", request)
        self._send(
            json_format.MessageToDict(
                response,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
        )

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._send(self._answer(json.loads(body)))
        except KeyError as error:
            self._send({"error": str(error)}, 404)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            self._send({"error": str(error)}, 400)

    def _answer(self, content: dict[str, Any]) -> Any:
        match = re.fullmatch(
            r"/v1/models/([^/:]+)(?:/versions/(\d+))?:(classify|regress|predict)", self.path
        )
        if not match:
            raise ValueError(f"Malformed request: POST {self.path}")
        name, version, method = match.groups()
        kinds = {
            "classify": classification_pb2.ClassificationRequest,
            "regress": regression_pb2.RegressionRequest,
            "predict": predict_pb2.PredictRequest,
        }
        request = _request(kinds[method], name, version)
        request.model_spec.signature_name = content.get("signature_name", "")
        if method == "predict":
            return _predict(self.models.get(request.model_spec), request, content)
        for row in content["examples"]:
            example = request.input.example_list.examples.add()
            for feature, value in row.items():
                example.features.feature[feature].bytes_list.value.append(_from_json(value))
        result = self.models.answer(method, request).result
        if method == "regress":
            return {"results": [regression.value for regression in result.regressions]}
        rows = result.classifications
        return {"results": [[[x.label, x.score] for x in row.classes] for row in rows]}

    def _send(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content, indent=4, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _request(kind: Callable[[], Any], name: str, version: str | None) -> Any:
    request = kind()
    request.model_spec.name = name
    if version:
        request.model_spec.version.value = int(version)
    return request


def _predict(servable: Servable, request: Any, content: dict[str, Any]) -> Any:
    """Predict in REST: by rows, `instances`, or by columns, `inputs`."""
    needed = servable.signature(request).inputs
    columns = content.get("inputs", content.get("instances"))
    if "instances" in content and _is_named(columns[0]):
        columns = {name: [row[name] for row in columns] for name in columns[0]}
    if not _is_named(columns):
        columns = {next(iter(needed)): columns}
    for name, values in columns.items():
        dtype = tf.as_dtype(needed[name].dtype)
        values = [_from_json(value) if dtype == tf.string else value for value in values]
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtype))
    outputs = {
        name: _to_json(tf.make_ndarray(tensor))
        for name, tensor in servable.predict(request).outputs.items()
    }
    if "inputs" in content:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
    if len(outputs) == 1:
        return {"predictions": next(iter(outputs.values()))}
    rows = zip(*outputs.values(), strict=True)
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and list(value) != ["b64"]


def _from_json(value: Any) -> bytes:
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def _to_json(values: np.ndarray) -> Any:
    if values.dtype == object:
        return np.vectorize(bytes.decode, otypes=[object])(values).tolist()
    # The shortest digits that are the same float32.
    return json.loads(json.dumps(values.tolist()), parse_float=lambda x: float(np.float32(x)))


class Ports(NamedTuple):
    """Where a server listens, on localhost, and what it serves."""

    grpc: int
    rest: int
    models: Models


@contextmanager
def serving(folders: dict[str, Path]) -> Iterator[Ports]:
    """Serves models, by name, from the folders of their versions."""
    models = Models(folders)
    grpc_server = grpc.server(ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _PredictionService(models), grpc_server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(models), grpc_server)
    grpc_port = grpc_server.add_insecure_port("localhost:0")
    grpc_server.start()
    handler = type("Handler", (_RestHandler,), {"models": models})
    rest_server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    thread = threading.Thread(target=rest_server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Ports(grpc_port, rest_server.server_address[1], models)
    finally:
        rest_server.shutdown()
        rest_server.server_close()
        thread.join()
        grpc_server.stop(None)
