// Starts the kernels of cuda_kernels.cuh.
#pragma once
#include "cuda_kernels.cuh"

#ifndef D3Q_CUDA_EMULATOR
#define D3Q_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif

namespace d3q::cuda {

// Neighbouring queries read neighbouring cells, so wide blocks share the first-level cache. Where wide blocks would be
// too few to fill a large GPU (few queries: a decoder), narrow ones spread the work.
constexpr int kNarrowBlock = 64, kManyBlocks = 1024;

struct Grid {
  dim3 blocks;
  int threads;
};

template <int kLanes>
Grid grid_of(const Problem& p) {
  const auto grid = [&](int threads) {
    return Grid{dim3(unsigned(p.queries - 1) / (threads / kLanes) + 1, p.heads, p.batch), threads};
  };
  const Grid wide = grid(kWideBlock);
  return int64_t(wide.blocks.x) * p.heads * p.batch < kManyBlocks ? grid(kNarrowBlock) : wide;
}

template <typename T, int kDim>
void launch(const Problem& p, const ForwardTensors& t, cudaStream_t stream) {
  const auto kernel = forward_kernel<T, kDim>;
  const Grid grid = grid_of<Layout<T, kDim>::kLanes>(p);
  D3Q_LAUNCH(kernel, grid.blocks, grid.threads, stream, p, static_cast<const T*>(t.value),
             reinterpret_cast<const float2*>(t.locations), t.weights, static_cast<T*>(t.output));
}

template <typename T, int kDim>
void launch(const Problem& p, const BackwardTensors& t, cudaStream_t stream) {
  const auto kernel = backward_kernel<T, kDim>;
  const Grid grid = grid_of<Layout<T, kDim>::kLanes>(p);
  D3Q_LAUNCH(kernel, grid.blocks, grid.threads, stream, p, static_cast<const T*>(t.output_gradient),
             static_cast<const T*>(t.value), reinterpret_cast<const float2*>(t.locations), t.weights,
             t.value_gradient, reinterpret_cast<float2*>(t.location_gradient), t.weight_gradient);
}

template <Dtype dtype, typename Tensors>
const char* start(const Problem& problem, const Tensors& tensors, int device, void* stream_handle) {
  using T = typename ElementOf<dtype>::type;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  // The library brings its own CUDA runtime, which must learn of the device that torch chose.
  if (const auto error = cudaSetDevice(device); error != cudaSuccess) {
    cudaGetLastError();  // or the next launch would report it
    return cudaGetErrorString(error);
  }
  switch (problem.dim) {
    case 8: launch<T, 8>(problem, tensors, stream); break;
    case 16: launch<T, 16>(problem, tensors, stream); break;
    case 32: launch<T, 32>(problem, tensors, stream); break;
    case 64: launch<T, 64>(problem, tensors, stream); break;
    case 128: launch<T, 128>(problem, tensors, stream); break;
    case 256: launch<T, 256>(problem, tensors, stream); break;
    default: return "no kernel for this width per head";
  }
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace d3q::cuda
