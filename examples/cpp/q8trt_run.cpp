// Runs the plan of a q8trt engine folder: token ids in, the task's answer out. What to do is in manifest.json.
//
//     q8trt_run ENGINE_DIR 101,1037,4946,102 101,2019,4946,102,1037,3899,102
//
// Each argument is one text or pair, as token ids with [CLS] and [SEP]; ids behind the first [SEP] are the second text's.
// Hashes are not checked here: `sha256sum -c SHA256SUMS` in a folder that `q8trt unpack` laid down does it.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;
using Row = std::vector<int32_t>;

struct Logger : nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << '\n';
    }
};

void check(cudaError_t code) {
    if (code != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}

template <typename T>
T need(T found, std::string const& what) {
    if (!found) throw std::runtime_error(what);
    return found;
}

// A stream, and memory on the GPU, given back with their owners.
struct Stream {
    Stream() { check(cudaStreamCreate(&handle)); }
    ~Stream() { cudaStreamDestroy(handle); }
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
    cudaStream_t handle = nullptr;
};

struct Buffer {
    explicit Buffer(size_t bytes) { check(cudaMalloc(&data, bytes)); }
    ~Buffer() { cudaFree(data); }
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;
    void* data = nullptr;
};

std::string read(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    need(file.good(), path + " cannot be opened");
    return {std::istreambuf_iterator<char>(file), {}};
}

Row ids_of(std::string const& text) {
    Row row;
    std::stringstream words(text);
    for (std::string word; std::getline(words, word, ',');) {
        need(!word.empty() && word.find_first_not_of("0123456789") == std::string::npos, "'" + text + "' is no list of ids");
        row.push_back(std::stoi(word));
    }
    need(!row.empty(), "a row has no token ids");
    return row;
}

// The plan's tightest profile that takes a batch of this shape, as manifest.json lists them.
int profile_for(json const& manifest, int batch, int length) {
    int best = -1, tightest = 0;
    for (size_t index = 0; index < manifest["profiles"].size(); ++index) {
        auto low = manifest["profiles"][index]["min"], high = manifest["profiles"][index]["max"];
        if (batch < low[0] || batch > high[0] || length < low[1] || length > high[1]) continue;
        if (best < 0 || high[1] < tightest) best = static_cast<int>(index), tightest = high[1];
    }
    need(best >= 0, "no profile of the plan takes " + std::to_string(batch) + "x" + std::to_string(length));
    return best;
}

// The rows padded to one length, as each of the model's inputs wants them.
std::map<std::string, Row> padded(std::vector<Row> const& rows, size_t length, int32_t pad) {
    std::map<std::string, Row> arrays;
    for (Row const& row : rows) {
        auto second = std::find(row.begin(), row.end(), row.back()) + 1 - row.begin();  // the last id is [SEP]
        for (size_t index = 0; index < length; ++index) {
            bool real = index < row.size();
            arrays["input_ids"].push_back(real ? row[index] : pad);
            arrays["attention_mask"].push_back(real);
            arrays["token_type_ids"].push_back(real && static_cast<long>(index) >= second);
        }
    }
    return arrays;
}

void print(json const& task, float const* logits, int width) {
    if (task["is_regression"]) {
        bool const sigmoid = task.value("activation", "identity") == "sigmoid";
        std::cout << (sigmoid ? 1 / (1 + std::exp(-logits[0])) : logits[0]) << '\n';
        return;
    }
    int best = static_cast<int>(std::max_element(logits, logits + width) - logits);
    double sum = 0;
    for (int label = 0; label < width; ++label) sum += std::exp(static_cast<double>(logits[label]) - logits[best]);
    std::cout << task["labels"][best].get<std::string>() << ' ' << 1 / sum << '\n';
}

void run(std::string const& folder, std::vector<Row> const& rows) {
    auto const manifest = json::parse(read(folder + "/manifest.json"));
    auto const plan = read(folder + "/model.plan");
    need(plan.size() == manifest["files"]["model.plan"]["bytes"].get<size_t>(), "model.plan has not the manifest's size");

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime(need(nvinfer1::createInferRuntime(logger), "TensorRT does not start"));
    std::unique_ptr<nvinfer1::ICudaEngine> engine(
        need(runtime->deserializeCudaEngine(plan.data(), plan.size()), "the plan cannot be loaded on this machine"));
    std::unique_ptr<nvinfer1::IExecutionContext> context(need(engine->createExecutionContext(), "no memory for a context"));

    size_t longest = 0;
    for (Row const& row : rows) longest = std::max(longest, row.size());
    int const batch = static_cast<int>(rows.size()), length = static_cast<int>(longest);
    Stream const stream;
    int const profile = profile_for(manifest, batch, length);
    need(context->setOptimizationProfileAsync(profile, stream.handle), "the profile was refused");

    auto const arrays = padded(rows, longest, manifest["model"]["pad_token_id"]);
    std::vector<std::unique_ptr<Buffer>> buffers;
    for (std::string name : manifest["inputs"]) {
        Row const& values = arrays.at(name);
        size_t const bytes = values.size() * sizeof(int32_t);
        buffers.push_back(std::make_unique<Buffer>(bytes));
        check(cudaMemcpyAsync(buffers.back()->data, values.data(), bytes, cudaMemcpyHostToDevice, stream.handle));
        need(context->setInputShape(name.c_str(), nvinfer1::Dims2{batch, length}), name + ": the shape was refused");
        need(context->setTensorAddress(name.c_str(), buffers.back()->data), name + ": the address was refused");
    }
    int const width = manifest["model"]["num_labels"];
    std::vector<float> logits(static_cast<size_t>(batch) * width);
    buffers.push_back(std::make_unique<Buffer>(logits.size() * sizeof(float)));
    need(context->setTensorAddress("logits", buffers.back()->data), "logits: the address was refused");

    need(context->enqueueV3(stream.handle), "the batch was refused");
    check(cudaMemcpyAsync(
        logits.data(), buffers.back()->data, logits.size() * sizeof(float), cudaMemcpyDeviceToHost, stream.handle));
    check(cudaStreamSynchronize(stream.handle));
    for (int row = 0; row < batch; ++row) print(manifest["task"], logits.data() + row * width, width);
}

int main(int count, char** words) {
    if (count < 3) {
        std::cerr << "usage: q8trt_run ENGINE_DIR IDS [IDS ...]   (ids of a text or pair, joined by commas)\n";
        return 2;
    }
    try {
        std::vector<Row> rows;
        for (int index = 2; index < count; ++index) rows.push_back(ids_of(words[index]));
        run(words[1], rows);
    } catch (std::exception const& error) {
        std::cerr << "q8trt_run: error: " << error.what() << '\n';
        return 2;
    }
    return 0;
}
