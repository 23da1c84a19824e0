"""TensorFlow Serving as far as a client sees it, for tests: gRPC and REST over SavedModels.

Models run as TensorFlow Serving runs them, in a session, by the names of the tensors in their
signature definitions. What is asked wrongly is answered with its codes and in its words
(tensorflow_serving/servables/tensorflow, model_servers/http_rest_api_handler.cc and
util/json_tensor.cc).
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

PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{x}" for x in ("predict", "classify", "regress"))
_DEFAULT = "serving_default"
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INTERNAL: 500,
}


class ServingError(Exception):
    """What a request is refused with."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


class Servable:
    """One version of a model, loaded and warmed up."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.version = name, int(path.name)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
        self.signatures = meta_graph.signature_def
        self.num_warmups = self._warm_up(path / "assets.extra" / "tf_serving_warmup_requests")

    def _warm_up(self, path: Path) -> int:
        if not path.is_file():
            return 0
        calls = {"predict_log": self.predict, "classify_log": self.classify}
        calls["regress_log"] = self.regress
        count = 0
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            calls[kind](getattr(log, kind).request)
            count += 1
        return count

    def run(self, signature: Any, inputs: dict[str, np.ndarray], outputs: list[str]) -> list:
        feeds = {}
        for number, (name, value) in enumerate(inputs.items()):
            expected, given = (
                "float" if dtype == tf.float32 else dtype.name
                for dtype in (tf.as_dtype(signature.inputs[name].dtype), tf.as_dtype(value.dtype))
            )
            if given != expected:
                raise invalid(f"Expects arg[{number}] to be {expected} but {given} is provided")
            feeds[signature.inputs[name].name] = value
        try:
            return self._session.run([signature.outputs[name].name for name in outputs], feeds)
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            raise invalid(str(error)) from error

    def model_spec(self, response: Any, signature_name: str) -> None:
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = signature_name or _DEFAULT

    def predict(self, request: Any) -> Any:
        key = request.model_spec.signature_name or _DEFAULT
        if key not in self.signatures:
            message = f'Serving signature key "{key}" not found.'
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, message)
        signature = self.signatures[key]
        sent, needed = set(request.inputs), set(signature.inputs)
        if len(sent) != len(needed):
            names = [",".join(sorted(x)) for x in (sent, needed, sent - needed, needed - sent)]
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(needed)} "
                f"len({{{names[0]}}}) != len({{{names[1]}}}). Sent extra: {{{names[2]}}}. "
                f"Missing but required: {{{names[3]}}}."
            )
        for name in sent - needed:
            raise invalid(
                f"input tensor alias not found in signature: {name}. Inputs expected to be in the "
                f"set {{{','.join(sorted(needed))}}}."
            )
        wanted = list(request.output_filter) or sorted(signature.outputs)
        for name in wanted:
            if name not in signature.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {name} Outputs expected to be "
                    f"in the set {{{','.join(sorted(signature.outputs))}}}."
                )
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        response = predict_pb2.PredictResponse()
        self.model_spec(response, key)
        for name, value in zip(wanted, self.run(signature, inputs, wanted), strict=True):
            dtype = tf.as_dtype(signature.outputs[name].dtype)
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
        return response

    def classify(self, request: Any) -> Any:
        classes, scores = self._examples(request, CLASSIFY, "classification", ["classes", "scores"])
        response = classification_pb2.ClassificationResponse()
        self.model_spec(response, request.model_spec.signature_name)
        for labels, row in zip(classes, scores, strict=True):
            classifications = response.result.classifications.add()
            for label, score in zip(labels, row, strict=True):
                classifications.classes.add(label=label, score=score)
        return response

    def regress(self, request: Any) -> Any:
        (values,) = self._examples(request, REGRESS, "regression", ["outputs"])
        response = regression_pb2.RegressionResponse()
        self.model_spec(response, request.model_spec.signature_name)
        for value in values:
            response.result.regressions.add(value=value)
        return response

    def _examples(self, request: Any, method: str, kind: str, outputs: list[str]) -> list:
        key = request.model_spec.signature_name or _DEFAULT
        if key not in self.signatures:
            raise invalid(f"No signature was found with the name: {key}")
        signature = self.signatures[key]
        if signature.method_name != method:
            raise invalid(
                f"Expected {kind} signature method_name to be {method}. "
                f"Was: {signature.method_name}"
            )
        examples = [example.SerializeToString() for example in request.input.example_list.examples]
        if not examples:
            raise invalid("Input is empty.")
        return self.run(signature, {"inputs": np.array(examples, object)}, outputs)

    def metadata(self) -> Any:
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in self.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        response.metadata["signature_def"].Pack(signatures)
        return response


class Models:
    """All models of a server: each the highest version in its folder."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.servables = {}
        for name, folder in folders.items():
            versions = [path for path in folder.iterdir() if re.fullmatch(r"\d+", path.name)]
            self.servables[name] = Servable(name, max(versions, key=lambda path: int(path.name)))

    def get(self, model_spec: Any) -> Servable:
        servable = self.servables.get(model_spec.name)
        version = model_spec.version.value if model_spec.HasField("version") else None
        if servable is None or version not in (None, servable.version):
            wanted = f"Latest({model_spec.name})"
            if version is not None:
                wanted = f"Specific({model_spec.name}, {version})"
            message = f"Servable not found for request: {wanted}"
            raise ServingError(grpc.StatusCode.NOT_FOUND, message)
        return servable

    def status(self, request: Any) -> Any:
        name = request.model_spec.name
        if name not in self.servables:
            message = f"Could not find any versions of model {name}"
            raise ServingError(grpc.StatusCode.NOT_FOUND, message)
        response = get_model_status_pb2.GetModelStatusResponse()
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        status = response.model_version_status.add(state=available)
        status.version = self.servables[name].version
        status.status.error_message = ""
        return response


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: Models) -> None:
        self._models = models

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _answer(context, lambda: self._models.get(request.model_spec).predict(request))

    def Classify(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _answer(context, lambda: self._models.get(request.model_spec).classify(request))

    def Regress(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _answer(context, lambda: self._models.get(request.model_spec).regress(request))

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _answer(context, lambda: self._models.get(request.model_spec).metadata())


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _answer(context, lambda: self._models.status(request))


def _answer(context: Any, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except ServingError as error:
        return context.abort(error.code, str(error))


class _RestHandler(http.server.BaseHTTPRequestHandler):
    models: Models
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        self._respond(self._get)

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._respond(lambda: self._post(body))

    def _respond(self, function: Callable[[], Any]) -> None:
        status = 200
        try:
            content = function()
        except ServingError as error:
            status, content = _HTTP_STATUS[error.code], {"error": str(error)}
        body = json.dumps(content, indent=4, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _malformed(self) -> ServingError:
        return invalid(f"Malformed request: {self.command} {self.path}")

    def _get(self) -> Any:
        match = re.fullmatch(r"(?i)/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata)?", self.path)
        if not match:
            raise self._malformed()
        spec = _request(predict_pb2.PredictRequest, *match.groups()[:2]).model_spec
        if match[3]:
            response = self.models.get(spec).metadata()
        else:
            response = self.models.status(
                get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
            )
        return json_format.MessageToDict(
            response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def _post(self, body: bytes) -> Any:
        match = re.fullmatch(
            r"(?i)/v1/models/([^/:]+)(?:/versions/(\d+))?:(classify|regress|predict)", self.path
        )
        if not match:
            raise self._malformed()
        name, version, method = match.groups()
        content = _parsed(body)
        if method == "predict":
            request = _request(predict_pb2.PredictRequest, name, version)
            return _predict(self.models.get(request.model_spec), request, content)
        kinds = {
            "classify": classification_pb2.ClassificationRequest,
            "regress": regression_pb2.RegressionRequest,
        }
        request = _request(kinds[method], name, version)
        request.model_spec.signature_name = content.get("signature_name", "")
        _fill_examples(request, content)
        servable = self.models.get(request.model_spec)
        if method == "regress":
            found = servable.regress(request).result.regressions
            return {"results": [regression.value for regression in found]}
        found = servable.classify(request).result.classifications
        return {"results": [[[x.label, x.score] for x in row.classes] for row in found]}


def _request(kind: Callable[[], Any], name: str, version: str | None) -> Any:
    request = kind()
    request.model_spec.name = name
    if version:
        request.model_spec.version.value = int(version)
    return request


def _parsed(body: bytes) -> dict[str, Any]:
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        content = json.loads(body)
    except ValueError as error:
        place = getattr(error, "pos", 0)
        raise invalid(f"JSON Parse error: Invalid value. at offset: {place}") from error
    if not isinstance(content, dict):
        raise invalid(f"JSON Value: {json.dumps(content)} Is not object")
    return content


def _predict(servable: Servable, request: Any, content: dict[str, Any]) -> Any:
    key = content.get("signature_name", "")
    request.model_spec.signature_name = key
    if (key or _DEFAULT) not in servable.signatures:
        raise invalid(f'Serving signature name: "{key or _DEFAULT}" not found in signature def')
    needed = servable.signatures[key or _DEFAULT].inputs
    if "instances" in content and "inputs" in content:
        raise invalid(
            f"JSON Value: {json.dumps(content)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in content:
        columns = _columns_of_rows(content["instances"], needed, content)
    elif "inputs" in content:
        columns = _columns_of_object(content["inputs"], needed)
    else:
        raise invalid("Missing 'inputs' or 'instances' key")
    for name, values in columns.items():
        request.inputs[name].CopyFrom(_tensor(values, tf.as_dtype(needed[name].dtype)))
    outputs = {
        name: _to_json(tf.make_ndarray(tensor), name.endswith("_bytes"))
        for name, tensor in servable.predict(request).outputs.items()
    }
    if "inputs" in content:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
    if len(outputs) == 1:
        return {"predictions": next(iter(outputs.values()))}
    rows = zip(*outputs.values(), strict=True)
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]}


def _columns_of_rows(instances: Any, needed: Any, content: Any) -> dict[str, list]:
    if not isinstance(instances, list):
        raise invalid(
            f"JSON Value: {json.dumps(content)} Excepting 'instances' to be an list/array"
        )
    if not instances:
        raise invalid(f"JSON Value: {json.dumps(content)} No values in 'instances' array")
    if not isinstance(instances[0], dict) and len(needed) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if not _is_named(instances[0]):
        return {next(iter(needed)): instances}
    names = sorted(needed)
    for number, instance in enumerate(instances):
        if not _is_named(instance):
            raise invalid(f"Expecting object but got list at item {number} of input list")
        if sorted(instance) != names:
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{json.dumps(instance)} keys must be equal to: {','.join(names)}"
            )
    return {name: [instance[name] for instance in instances] for name in names}


def _columns_of_object(inputs: Any, needed: Any) -> dict[str, Any]:
    if not _is_named(inputs):
        if len(needed) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return {next(iter(needed)): inputs}
    for name in needed:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: inputs[name] for name in needed}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and list(value) != ["b64"]


def _tensor(values: Any, dtype: tf.DType) -> Any:
    shape, part = [], values
    while isinstance(part, list):
        shape.append(len(part))
        part = part[0] if part else None
    leaves = list(_leaves(values, shape, 0))
    kind = "DT_STRING" if dtype == tf.string else f"DT_{dtype.name.upper()}"
    good = str if dtype == tf.string else int if dtype.is_integer else float | int
    flat = []
    for leaf in leaves:
        if dtype == tf.string and isinstance(leaf, dict):
            flat.append(base64.b64decode(leaf["b64"]))
        elif not isinstance(leaf, good) or isinstance(leaf, bool):
            raise invalid(
                f"JSON Value: {json.dumps(leaf)} Type: {_type_name(leaf)} is not of expected type: "
                f"{kind.removeprefix('DT_').lower()}"
            )
        else:
            flat.append(leaf.encode() if isinstance(leaf, str) else leaf)
    return tf.make_tensor_proto(flat, dtype, shape)


def _leaves(value: Any, shape: list[int], level: int) -> Iterator[Any]:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {json.dumps(value)} found at incorrect level: {level + 1} in the "
                f"JSON DOM. Expected at level: {len(shape)}"
            )
        yield value
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for part in value:
        yield from _leaves(part, shape, level + 1)


def _type_name(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    return {dict: "Object", list: "Array", str: "String"}.get(type(value), "Number")


def _to_json(values: np.ndarray, as_bytes: bool) -> Any:
    if values.dtype != object:
        # The shortest digits that are the same float32.
        return json.loads(json.dumps(values.tolist()), parse_float=lambda x: float(np.float32(x)))

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(part) for part in value]
        return {"b64": base64.b64encode(value).decode()} if as_bytes else value.decode()

    return convert(values.tolist())


def _fill_examples(request: Any, content: dict[str, Any]) -> None:
    rows = content.get("examples")
    whole = f"JSON Value: {json.dumps(content)}"
    if rows is None:
        raise invalid(
            f"{whole} When method is classify, key 'examples' is expected and was not found"
        )
    if not isinstance(rows, list):
        raise invalid(f"{whole} Expecting 'examples' value to be an list/array")
    if not rows:
        raise invalid(f"{whole} 'examples' value is an empty array")
    for row in rows:
        if not isinstance(row, dict):
            raise invalid(f"Example must be JSON object but got JSON {_type_name(row)}")
        example = request.input.example_list.examples.add()
        for name, values in row.items():
            for value in values if isinstance(values, list) else [values]:
                _add_to_feature(example.features.feature[name], name, value)


def _add_to_feature(feature: Any, name: str, value: Any) -> None:
    if isinstance(value, str):
        feature.bytes_list.value.append(value.encode())
    elif isinstance(value, dict) and list(value) == ["b64"]:
        feature.bytes_list.value.append(base64.b64decode(value["b64"]))
    elif isinstance(value, int):
        feature.int64_list.value.append(value)
    elif isinstance(value, float):
        feature.float_list.value.append(value)
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {_type_name(value)}")


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
