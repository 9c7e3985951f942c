"""A C++ example that runs an engine: TensorRT's and CUDA's own calls, no library between.

It takes binary PPM images of the network's size, so that decoding and resizing stay the application's choice; the
calls are those that TensorRT 8.5 to 11 have in common.
"""

from __future__ import annotations

from edgetl.deploy.emit.served import Served

SOURCE = "classify.cpp"


def texts(model: Served) -> dict[str, str]:
    """The source and a Makefile."""
    pixel = "unsigned char" if model.nhwc else "float"
    # Pixel p of channel c: interleaved as in the file, or one plane after the other.
    place = "3 * p + c" if model.nhwc else "c * kSize * kSize + p"
    labels = ", ".join(literal(label) for label in model.labels)
    values = {
        "NAME": model.name,
        "INPUT": model.input.name,
        "OUTPUT": model.output,
        "SIZE": str(model.size),
        "PIXEL": pixel,
        "PLACE": place,
        "LABELS": labels,
        "CLASSES": str(len(model.labels)),
        "GRAPH": model.sha256[:12],
    }
    source = _SOURCE
    for key, value in values.items():
        source = source.replace(f"@{key}@", value)
    return {SOURCE: source, "Makefile": _MAKEFILE}


def literal(text: str) -> str:
    """`text` in UTF-8 as a C++ string literal; three octal digits end by themselves, hexadecimal ones do not."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode("utf-8")) + '"'


_MAKEFILE = """CUDA ?= /usr/local/cuda
classify: classify.cpp
\t$(CXX) -std=c++17 -O2 -Wall -I$(CUDA)/include $< -o $@ -L$(CUDA)/lib64 -lnvinfer -lcudart
"""

_SOURCE = r"""// @NAME@: classify binary PPM images (P6, @SIZE@ x @SIZE@ RGB) with an engine built from graph @GRAPH@.
//   make && ./classify model.plan image.ppm ...
// Decode and resize as the bundle's Preprocess says; normalisation is inside the engine.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr int kSize = @SIZE@;
constexpr int kClasses = @CLASSES@;
const char* const kLabels[] = {@LABELS@};

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
    }
};

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "error: %s\n", what.c_str());
    std::exit(1);
}

void check(cudaError_t code, const char* call) {
    if (code != cudaSuccess) fail(std::string(call) + ": " + cudaGetErrorString(code));
}

std::vector<char> bytes_of(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) fail("cannot read " + path);
    return {std::istreambuf_iterator<char>(stream), {}};
}

std::vector<@PIXEL@> input_of(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::string magic;
    int width = 0, height = 0, most = 0;
    stream >> magic >> width >> height >> most;
    stream.get();
    if (!stream || magic != "P6" || most != 255) fail("not a binary PPM with 8 bits a channel: " + path);
    if (width != kSize || height != kSize) fail("not @SIZE@ x @SIZE@: " + path);
    std::vector<unsigned char> raw(3 * kSize * kSize);
    if (!stream.read(reinterpret_cast<char*>(raw.data()), raw.size())) fail("cut short: " + path);
    std::vector<@PIXEL@> pixels(raw.size());
    for (int p = 0; p < kSize * kSize; ++p)
        for (int c = 0; c < 3; ++c) pixels[@PLACE@] = raw[3 * p + c];
    return pixels;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) fail("usage: classify model.plan image.ppm ...");
    Logger logger;
    const auto plan = bytes_of(argv[1]);
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    if (!runtime) fail("TensorRT does not start");
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) fail("the engine cannot be loaded here: build it on this machine");
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    if (!context) fail("no execution context");

    void *input = nullptr, *output = nullptr;
    cudaStream_t stream = nullptr;
    const std::size_t in_bytes = sizeof(@PIXEL@) * 3 * kSize * kSize, out_bytes = sizeof(float) * kClasses;
    check(cudaMalloc(&input, in_bytes), "cudaMalloc");
    check(cudaMalloc(&output, out_bytes), "cudaMalloc");
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    auto shape = engine->getTensorShape("@INPUT@");
    shape.d[0] = 1;
    if (!context->setInputShape("@INPUT@", shape) || !context->setTensorAddress("@INPUT@", input) ||
        !context->setTensorAddress("@OUTPUT@", output))
        fail("the engine's tensors are not @INPUT@ and @OUTPUT@");

    for (int i = 2; i < argc; ++i) {
        const auto pixels = input_of(argv[i]);
        std::vector<float> scores(kClasses);
        check(cudaMemcpyAsync(input, pixels.data(), in_bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
        if (!context->enqueueV3(stream)) fail("TensorRT failed while running");
        check(cudaMemcpyAsync(scores.data(), output, out_bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
        check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
        const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
        std::printf("%s\t%s\t%.6f\n", argv[i], kLabels[best], scores[best]);
    }
    cudaStreamDestroy(stream);
    cudaFree(output);
    cudaFree(input);
}
"""
