"""Every name taken from a `tensorrt` binding, in one place, and which TensorRT lines have it.

Two thirds of the lines that are served cannot be run on any one machine, so a misspelt or removed name
would be found by a user. A test holds this list against the real bindings of 8.6, 10.3 and 11.4 and
against the code that uses them. Enum *numbers* changed in 11: only names are used.
"""

from __future__ import annotations

# In all of 8.5 to 11, used plainly.
_ALWAYS = """
    ILogger Runtime deserialize_cuda_engine __version__ name
    Builder create_network OnnxParser parse num_errors get_error desc node
    num_inputs get_input num_outputs get_output num_layers get_layer type shape
    LayerType CONVOLUTION DECONVOLUTION MATRIX_MULTIPLY DEQUANTIZE
    create_builder_config clear_flag set_flag BuilderFlag TF32 MemoryPoolType WORKSPACE set_memory_pool_limit
    profiling_verbosity ProfilingVerbosity DETAILED create_optimization_profile set_shape add_optimization_profile
    create_timing_cache set_timing_cache get_timing_cache serialize build_serialized_network
    create_engine_inspector execution_context get_engine_information LayerInformationFormat JSON
    create_execution_context num_io_tensors get_tensor_name get_tensor_mode TensorIOMode INPUT
    get_tensor_dtype get_tensor_shape get_tensor_profile_shape set_input_shape set_tensor_address execute_async_v3
"""
ALWAYS = frozenset(_ALWAYS.split())

# Used only where hasattr finds them, or on a line that has them: what each is for, and where it is.
GUARDED = {
    "EXPLICIT_BATCH": "network flag of 8.5 to 10; 11 has no other kind of network",
    "STRONGLY_TYPED": "network flag of 10 (and deprecated in 11, where it is always so)",
    "NetworkDefinitionCreationFlag": "holds the two above",
    "FP16": "builder flag of 8.5 and 8.6 (deprecated in 10, gone in 11)",
    "INT8": "builder flag of 8.5 and 8.6 (deprecated in 10, gone in 11)",
    "builder_optimization_level": "8.6 and later",
    "IProgressMonitor": "10 and later: progress, and a build that Ctrl-C can end",
    "progress_monitor": "10 and later",
    "metadata": "of a network layer: its ONNX node; 8.6 and later, before that the layer's name is the node's",
    "node_name": "of a parser error; 10 and later, before that the node's number",
    "node_operator": "of a parser error; with node_name",
    "FULLY_CONNECTED": "layer type of 8.5 and 8.6",
    "get_engine_validity": "TensorRT for RTX: whether this GPU can run a plan",
    "EngineValidity": "TensorRT for RTX",
    "INVALID": "TensorRT for RTX",
}
