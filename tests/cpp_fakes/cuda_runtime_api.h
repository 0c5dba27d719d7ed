// The few calls of the CUDA runtime that examples/cpp makes, on host memory.
#pragma once
#include <cstdlib>
#include <cstring>

using cudaError_t = int;
using cudaStream_t = int*;
constexpr cudaError_t cudaSuccess = 0;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

inline char const* cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaMalloc(void** pointer, size_t bytes) { return (*pointer = std::malloc(bytes)) ? 0 : 2; }
inline cudaError_t cudaFree(void* pointer) { return std::free(pointer), 0; }
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = new int(), 0; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, 0; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return 0; }
inline cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    return std::memcpy(to, from, bytes), 0;
}
