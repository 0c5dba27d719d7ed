// The few classes of TensorRT that examples/cpp uses. The plan is the text "LABELS INPUTS"; logit l of a row is
// (l + 1) / 100 * (sum of its ids under the mask) + sum of its token types + 10 * (index of the profile).
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <sstream>
#include <string>

namespace nvinfer1 {

struct Dims2 {
    int batch = 0, length = 0;
};

struct ILogger {
    enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING, kINFO };
    virtual void log(Severity severity, char const* message) noexcept = 0;
    virtual ~ILogger() = default;
};

struct IExecutionContext {
    int labels, inputs, profile = -1;
    Dims2 shape;
    std::map<std::string, void*> addresses;

    bool setOptimizationProfileAsync(int index, cudaStream_t) { return profile = index, true; }
    bool setInputShape(char const*, Dims2 const& wanted) { return shape = wanted, true; }
    bool setTensorAddress(char const* name, void* address) { return addresses[name] = address, true; }
    bool enqueueV3(cudaStream_t) {
        if (profile < 0 || static_cast<int>(addresses.size()) != inputs + 1) return false;
        auto const at = [&](char const* name) { return static_cast<int32_t const*>(addresses[name]); };
        auto* logits = static_cast<float*>(addresses["logits"]);
        for (int row = 0; row < shape.batch; ++row) {
            for (int label = 0; label < labels; ++label) {
                float sum = 10.F * static_cast<float>(profile);
                for (int place = row * shape.length; place < (row + 1) * shape.length; ++place) {
                    sum += static_cast<float>((label + 1) * at("input_ids")[place] * at("attention_mask")[place]) / 100;
                    if (inputs == 3) sum += static_cast<float>(at("token_type_ids")[place]);
                }
                *logits++ = sum;
            }
        }
        return true;
    }
};

struct ICudaEngine {
    int labels, inputs;
    IExecutionContext* createExecutionContext() { return new IExecutionContext{labels, inputs, -1, {}, {}}; }
};

struct IRuntime {
    ILogger& logger;
    ICudaEngine* deserializeCudaEngine(void const* data, size_t bytes) {
        std::istringstream text(std::string(static_cast<char const*>(data), bytes));
        int labels = 0, inputs = 0;
        if (text >> labels >> inputs) return new ICudaEngine{labels, inputs};
        logger.log(ILogger::Severity::kERROR, "the plan is of another version");
        return nullptr;
    }
};

inline IRuntime* createInferRuntime(ILogger& logger) { return new IRuntime{logger}; }

}  // namespace nvinfer1
