"""One graph through NVIDIA's parser and builder, and what became of its layers. Python 3.8."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from edgetl.engine.guard import interruptible, progress_for, stdout_to_stderr
from edgetl.engine.layers import Coverage, Layer, Source, from_build_log, from_inspector, onnx_nodes
from edgetl.engine.toolkit import Toolkit
from edgetl.errors import EngineError
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.binding import TENSORRT_RTX, Log, construct, logger_for, shape_of
from edgetl.spec import BatchProfile

_MIB = 1 << 20


@dataclass(frozen=True)
class PlanOptions:
    """What may be chosen about a build; precision may not. `workspace_mib` 0 and `level` -1: TensorRT's own."""

    batch: BatchProfile = field(default_factory=BatchProfile)
    workspace_mib: int = 0
    level: int = -1
    timing_cache: Optional[bytes] = None  # b"" starts an empty one, None keeps none


@dataclass(frozen=True)
class Plan:
    """A serialised engine: exactly TensorRT's bytes, what its layers compute in, and the timing cache after it."""

    data: bytes
    coverage: Coverage
    timing_cache: Optional[bytes]


def make_plan(tools: Toolkit, graph: bytes, precision: str, options: PlanOptions, monitor: Monitor = SILENT) -> Plan:
    """Parse and build. `precision` is the graph's recorded one (8.x derives its flags from it).

    Ctrl-C ends the build at its next step (on 8.x, which has no progress monitor: when it is done) and is
    raised as KeyboardInterrupt. Raises EngineError: the parser's words with the node, or the builder's.
    """
    trt: Any = tools.trt
    log = Log()
    with stdout_to_stderr(), interruptible() as cancel:
        logger = logger_for(trt, log)
        builder = construct(trt.Builder, logger, log)
        network = builder.create_network(tools.line.network_bits(trt))
        parse(trt, network, graph, logger, log)
        config = _configure(tools, builder, network, precision, options)
        progress = progress_for(trt, monitor, cancel)
        if progress is not None and hasattr(config, "progress_monitor"):
            config.progress_monitor = progress
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError("TensorRT could not build the engine", log.reason(), _NEXT)
        data = bytes(plan)
        layers = _read_layers(tools, data, log, logger, options)
        sources = read_sources(trt, network)
        cache = _cache_after(config, options)
    return Plan(data, Coverage(layers, sources), cache)


_NEXT = "if memory ran out try a smaller --workspace (256), then a lower --level"


def parse(trt: Any, network: Any, graph: bytes, logger: Any, log: Log) -> None:
    """Fill `network` from the bytes of an ONNX file. Raises EngineError with each node that was refused."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse(graph) and network.num_outputs > 0:
        return
    said = [_parser_error(parser.get_error(i)) for i in range(min(parser.num_errors, 5))]
    raise EngineError(
        "NVIDIA's parser refused the graph",
        "; ".join(said) or log.reason(),
        "export with another --target (cpu takes all that onnxruntime runs), or replace the operator in the model",
    )


def _parser_error(error: Any) -> str:
    """One parser error, its node first: by operator and name where the binding tells them, by number on 8.x."""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    said = " ".join(str(error.desc()).split())
    if said == "false":  # how the parser says that it has no such operator
        said = "an operator that this TensorRT does not know"
    if not name and error.node() < 0:
        return said  # the file as a whole, not one of its nodes
    return "%s %s: %s" % (operator or "node", repr(name) if name else "number %d" % error.node(), said)


def _configure(tools: Toolkit, builder: Any, network: Any, precision: str, options: PlanOptions) -> Any:
    trt: Any = tools.trt
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layer precisions are read back through it
    for flag in tools.line.builder_flags(trt, precision):
        config.set_flag(flag)
    # On by default: FP32 would silently have ten mantissa bits on Ampere and later.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if options.level >= 0:
        if not hasattr(config, "builder_optimization_level"):
            raise EngineError("this TensorRT has no optimisation levels", tools.version, "leave --level out")
        config.builder_optimization_level = options.level
    if options.timing_cache is not None:
        cache = config.create_timing_cache(options.timing_cache)
        if cache is None or not config.set_timing_cache(cache, False):
            raise EngineError("the timing cache does not fit this TensorRT and GPU", tools.version, "give a new file")
    _add_profile(builder, network, config, options.batch)
    return config


def _add_profile(builder: Any, network: Any, config: Any, batch: BatchProfile) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = shape_of(tensor.shape)
        if -1 in shape[1:]:
            raise EngineError("only the batch axis may be dynamic", "%s %s" % (tensor.name, list(shape)))
        if shape[0] != -1 and (batch.min, batch.max) != (shape[0], shape[0]):
            do = "use --batch %d" % shape[0]
            raise EngineError("the graph's batch is fixed", "%d, asked for %s" % (shape[0], batch), do)
        profile.set_shape(tensor.name, *((n, *shape[1:]) for n in (batch.min, batch.opt, batch.max)))
    config.add_optimization_profile(profile)


def _cache_after(config: Any, options: PlanOptions) -> Optional[bytes]:
    cache = config.get_timing_cache() if options.timing_cache is not None else None
    return bytes(cache.serialize()) if cache is not None else None


def _read_layers(tools: Toolkit, data: bytes, log: Log, logger: Any, options: PlanOptions) -> Tuple[Layer, ...]:
    """From the build log ahead of time; from the inspector where the engine can be loaded."""
    if tools.flavour == TENSORRT_RTX:
        return from_build_log(log.layers)
    trt: Any = tools.trt
    runtime = construct(trt.Runtime, logger, log)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError("the engine that was just built cannot be loaded", log.reason(), "see `edgetl doctor`")
    told = _inspect(trt, engine, options.batch)
    del engine  # before the runtime that made it
    return from_inspector(told)


def _inspect(trt: Any, engine: Any, batch: BatchProfile) -> str:
    """The inspector's JSON. Without a context that knows its shapes every type is "N/A due to dynamic shapes"."""
    context = engine.create_execution_context()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            shape = shape_of(engine.get_tensor_shape(name))
            context.set_input_shape(name, tuple(batch.opt if n == -1 else n for n in shape))
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def read_sources(trt: Any, network: Any) -> Tuple[Source, ...]:
    """The convolutions and matrix products that the parser made of the graph, under the graph's node names."""
    kinds = {getattr(trt.LayerType, name) for name in _MULTIPLYING if hasattr(trt.LayerType, name)}
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers: Dict[str, Any] = {}
    for layer in layers:
        for index in range(layer.num_outputs):
            makers[layer.get_output(index).name] = layer
    out: List[Source] = []
    for layer in layers:
        if layer.type in kinds:
            names = onnx_nodes(str(getattr(layer, "metadata", "")), layer.name)
            out.append(Source(names[0] if names else layer.name, _is_quantised(trt, layer, makers)))
    return tuple(out)


_MULTIPLYING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED")


def _is_quantised(trt: Any, layer: Any, makers: Dict[str, Any]) -> bool:
    """Both operands (activation and weights, or two activations) come out of DequantizeLinear."""
    if layer.num_inputs < 2:
        return False
    operands = [layer.get_input(i) for i in range(2)]
    made_by = [makers.get(tensor.name) if tensor is not None else None for tensor in operands]
    return all(maker is not None and maker.type == trt.LayerType.DEQUANTIZE for maker in made_by)
