"""Every whole number that an exported graph computes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

WHOLE = {onnx.TensorProto.INT64, onnx.TensorProto.INT32}


def outputs(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a graph, and every whole number in it, by tensor; ONNX Runtime computes them with 64 bits."""
    model = onnx.load(path)
    assert not model.functions  # whose numbers would not be seen
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.output]}
    own = {value.name for value in model.graph.output}
    for node in model.graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), node.op_type  # a graph within
        for name in node.output:
            assert not name or known.get(name), f"{node.op_type} {name}: of what type is it?"
            if known.get(name) in WHOLE and name not in own:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, known[name], None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))
    return {**found, **{value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}}


def largest_integer(tensors: dict[str, np.ndarray]) -> int:
    """The largest, whatever its sign, but for the end of a slice, which says "to the last"."""
    whole = [array for array in tensors.values() if array.dtype.kind in "iu" and array.size]
    ends = {np.iinfo(np.int64).max, np.iinfo(np.int64).min, np.iinfo(np.int32).max}
    return max(abs(int(number)) for array in whole for number in (array.max(), array.min()) if int(number) not in ends)
