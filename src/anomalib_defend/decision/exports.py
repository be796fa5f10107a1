"""Threshold and scale of an exported model, read from its graph and replaced there.

`NormalQuantilePostProcessor` ends every graph with ``x > threshold``, or not a number, for the labels, and
``0.5 + 0.5 (x - threshold) / (scale + |x - threshold|)`` for the scores; the numbers are constants. They are found by
these operations, not by names, which exporters choose.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .calibration import Calibration, Level

OUTPUTS = {"image": ("pred_score", "pred_label"), "pixel": ("anomaly_map", "pred_mask")}
_ONNX_NAMES = {"Sub": "Subtract", "Div": "Divide", "Mul": "Multiply", "Or": "LogicalOr"}
_ELEMENTWISE = {"Add", "Subtract", "Multiply", "Divide", "LogicalOr", "Greater", "Convert", "Result"}


class Place(NamedTuple):
    """A constant: input ``port`` of an operation; ``sign`` is -1 where it is added instead of subtracted."""

    node: Any
    port: int
    sign: int


class Ending(NamedTuple):
    """What post-processing leaves in a graph for images, or for maps."""

    raw: Any
    """The operation whose output is the raw score."""
    raw_port: int
    thresholds: list[Place]
    scale: Place


class OpenVINOGraph:
    """An OpenVINO IR.

    Args:
        path: The .xml file.
    """

    def __init__(self, path: Path) -> None:
        import openvino  # noqa: PLC0415 - optional extra

        self.model = openvino.Core().read_model(path)

    def producer(self, output: str) -> Any:
        """The operation that an output comes from; None if there is no such output."""
        for result in self.model.outputs:
            if output in result.get_names():
                return result.get_node().input_value(0).get_node()
        return None

    def kind(self, node: Any) -> str:
        """Kind of an operation."""
        return node.get_type_name()

    def name(self, node: Any) -> str:
        """Name of an operation, of which there is one."""
        return node.get_friendly_name()

    def inputs(self, node: Any) -> list[tuple[Any, int]]:
        """The operations that a node's inputs come from, and which of their outputs."""
        return [(value.get_node(), value.get_index()) for value in node.input_values()]

    def constant(self, node: Any) -> np.ndarray | None:
        """The value of a constant, also of one stored in half precision."""
        if self.kind(node) == "Convert":
            node = node.input_value(0).get_node()
        return np.asarray(node.data, dtype=np.float32) if self.kind(node) == "Constant" else None

    def replace(self, place: Place, value: np.ndarray) -> None:
        """Put another constant in a place."""
        from openvino import opset13  # noqa: PLC0415 - optional extra

        place.node.input(place.port).replace_source_output(opset13.constant(value).output(0))

    def save(self, path: Path) -> None:
        """Write .xml and .bin; the weights stay as they are."""
        import openvino  # noqa: PLC0415 - optional extra

        openvino.save_model(self.model, path, compress_to_fp16=False)

    def raw_outputs(self, endings: dict[str, Ending], hint: str | None) -> Any:
        """A function of images that returns scores, and maps, before scaling, in the arithmetic of ``hint``."""
        import openvino  # noqa: PLC0415 - optional extra

        model = self.with_raw_outputs(endings)
        first = len(self.model.outputs)
        # of weights of 8 bits, several streams compute wrong scores in bf16 (docs/upstream.md)
        config = {"NUM_STREAMS": "1", **({} if hint is None else {"INFERENCE_PRECISION_HINT": hint})}
        compiled = openvino.Core().compile_model(model, "CPU", config)
        return lambda images: [np.array(compiled(images)[first + index]) for index in range(len(endings))]

    def with_raw_outputs(self, endings: dict[str, Ending]) -> Any:
        """A copy of the model with the scores, and maps, before scaling as last outputs: anomalib accepts none."""
        model = self.model.clone()
        nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
        model.add_outputs([nodes[each.raw.get_friendly_name()].output(each.raw_port) for each in endings.values()])
        return model


class ONNXGraph:
    """An ONNX model.

    Args:
        path: The .onnx file.
    """

    def __init__(self, path: Path) -> None:
        import onnx  # noqa: PLC0415 - optional extra

        self.model = onnx.load(path)
        self._nodes = {name: node for node in self.model.graph.node for name in node.output}
        self._constants = {item.name: item for item in self.model.graph.initializer}

    def producer(self, output: str) -> Any:
        """The operation that an output comes from; None if there is no such output."""
        return self._nodes.get(output) if output in {item.name for item in self.model.graph.output} else None

    def kind(self, node: Any) -> str:
        """Kind of an operation, as OpenVINO calls it."""
        return _ONNX_NAMES.get(node.op_type, node.op_type) if hasattr(node, "op_type") else "Constant"

    def name(self, node: Any) -> str:
        """Name of an operation, of which there is one."""
        return node.output[0] if hasattr(node, "op_type") else getattr(node, "name", "")

    def inputs(self, node: Any) -> list[tuple[Any, int]]:
        """The operations that a node's inputs come from, and which of their outputs."""
        result = []
        for name in getattr(node, "input", ()):
            source = self._nodes.get(name)
            result.append((self._constants.get(name), 0) if source is None else (source, [*source.output].index(name)))
        return result

    def constant(self, node: Any) -> np.ndarray | None:
        """The value of a constant."""
        from onnx import numpy_helper  # noqa: PLC0415 - optional extra

        return None if node is None or hasattr(node, "op_type") else numpy_helper.to_array(node)

    def replace(self, place: Place, value: np.ndarray) -> None:
        """Put another constant in a place."""
        from onnx import numpy_helper  # noqa: PLC0415 - optional extra

        name = f"anomalib_defend_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        self._constants[name] = self.model.graph.initializer[-1]
        place.node.input[place.port] = name

    def save(self, path: Path) -> None:
        """Write the model, weights included."""
        import onnx  # noqa: PLC0415 - optional extra

        onnx.save(self.model, path)

    def raw_outputs(self, endings: dict[str, Ending], hint: str | None) -> Any:
        """A function of images that returns scores, and maps, before scaling; ``hint`` is OpenVINO's alone."""
        import onnx  # noqa: PLC0415 - optional extra
        import onnxruntime  # noqa: PLC0415 - the user's own choice of engine

        if hint is not None:
            msg = f"hint={hint!r} is of OpenVINO: give its .xml file."
            raise ValueError(msg)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        names = [ending.raw.output[ending.raw_port] for ending in endings.values()]
        there = {item.name for item in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda images: session.run(names, {session.get_inputs()[0].name: images})


Graph = OpenVINOGraph | ONNXGraph


def open_graph(path: Path) -> Graph:
    """Read an exported model."""
    return OpenVINOGraph(path) if path.suffix == ".xml" else ONNXGraph(path)


def find_endings(graph: Graph) -> dict[str, Ending]:
    """Find threshold and scale of images, and of maps where there are any.

    Raises:
        ValueError: If the graph does not end as this package's post-processing does.
    """
    endings = {}
    for level, (score, label) in OUTPUTS.items():
        producer = graph.producer(score)
        if producer is None:
            continue
        divisions = [node for node in _elementwise(graph, producer) if _is_scaling(graph, node)]
        if not divisions:
            if level == "pixel":
                continue
            msg = "the scores are not scaled by this package's NormalQuantilePostProcessor"
            raise ValueError(msg)
        division = divisions[0]
        (distance, _), (denominator, _) = graph.inputs(division)
        scale = _constant_input(graph, denominator)
        place = _constant_input(graph, distance)
        if graph.kind(distance) == "Add":
            place = place._replace(sign=-1)
        raw, port = graph.inputs(distance)[1 - place.port]
        thresholds = [place]
        judged = graph.producer(label)
        # with a sensitivity of its own, the scaled score is compared, and moves with the threshold
        thresholds += [
            _constant_input(graph, node)
            for node in (_elementwise(graph, judged) if judged is not None else ())
            if graph.kind(node) == "Greater" and graph.name(graph.inputs(node)[0][0]) == graph.name(raw)
        ]
        endings[level] = Ending(raw, port, thresholds, scale)
    return endings


def read(graph: Graph, ending: Ending) -> tuple[float, float]:
    """Threshold and scale."""
    threshold, scale = ending.thresholds[0], ending.scale
    return threshold.sign * _value(graph, threshold), _value(graph, scale)


def write(graph: Graph, endings: dict[str, Ending], calibration: Calibration) -> None:
    """Replace thresholds and scales by those of a calibration."""
    levels: dict[str, Level | None] = {"image": calibration.image, "pixel": calibration.pixel}
    for name, ending in endings.items():
        level = levels[name]
        if level is None:
            continue
        for place in ending.thresholds:
            _put(graph, place, place.sign * level.threshold)
        _put(graph, ending.scale, level.scale)


def _elementwise(graph: Graph, node: Any) -> Iterator[Any]:
    """A node and those before it, nearest first, up to the first that is not elementwise."""
    queue = [node]
    while queue:
        node = queue.pop(0)
        if node is not None and graph.kind(node) in _ELEMENTWISE:
            yield node
            queue.extend(source for source, _ in graph.inputs(node))


def _is_scaling(graph: Graph, node: Any) -> bool:
    """Whether a node is d / (c + |d|) with a constant c."""
    if graph.kind(node) != "Divide":
        return False
    (distance, _), (denominator, _) = graph.inputs(node)
    if graph.kind(denominator) != "Add" or graph.kind(distance) not in {"Add", "Subtract"}:
        return False
    sizes = [source for source, _ in graph.inputs(denominator) if source is not None and graph.kind(source) == "Abs"]
    return any(graph.name(graph.inputs(source)[0][0]) == graph.name(distance) for source in sizes)


def _constant_input(graph: Graph, node: Any) -> Place:
    for index, (source, _) in enumerate(graph.inputs(node)):
        value = graph.constant(source)
        if value is not None and value.size == 1:
            return Place(node, index, 1)
    msg = f"an operation {graph.kind(node)} has no constant, as the threshold would be"
    raise ValueError(msg)


def _value(graph: Graph, place: Place) -> float:
    constant = graph.constant(graph.inputs(place.node)[place.port][0])
    if constant is None:  # found as a constant before
        raise AssertionError
    return float(constant.reshape(-1)[0])


def _put(graph: Graph, place: Place, value: float) -> None:
    constant = graph.constant(graph.inputs(place.node)[place.port][0])
    shape = () if constant is None else constant.shape
    graph.replace(place, np.full(shape, value, dtype=np.float32))
