// What the CUDA kernels compute with: element types, their conversions, and what differs between architectures.
#pragma once
#ifdef D3Q_CUDA_EMULATOR
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "cuda_kernels.h"

namespace d3q::cuda {

template <Dtype dtype>
struct ElementOf;
template <>
struct ElementOf<Dtype::kFloat> {
  using type = float;
};
template <>
struct ElementOf<Dtype::kHalf> {
  using type = __half;
};
template <>
struct ElementOf<Dtype::kBFloat16> {
  using type = __nv_bfloat16;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float x, float& to) { to = x; }
__device__ __forceinline__ void from_float(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 800;  // on the host, and in the emulator by default
#endif

// Wide blocks that a multiprocessor must hold at once, which caps the registers of a thread: 3 at 80, 4 at 64, 5 at 48,
// 6 at 40; 0 is the compiler's choice. These are, of those with which nothing spills (nvcc 13.0), the most; docs/benchmarks.md
// has the registers. Architectures from 9.0 on have vector reductions, and other code for the backward pass.
template <typename T, int kDim>
constexpr int forward_blocks() {
  constexpr bool is_half = sizeof(T) == 2;
  if (kArchitecture < 800) return !is_half && kDim == 256 ? 3 : 4;
  return is_half && kDim >= 64 && kArchitecture >= 1000 ? 4 : 0;
}
template <typename T, int kDim>
constexpr int backward_blocks() {
  constexpr bool is_half = sizeof(T) == 2;
  if (kArchitecture < 800) return 4;
  if (kArchitecture >= 1000) return is_half && kDim == 32 ? 4 : 0;
  if (is_half) return kDim >= 64 && kArchitecture < 900 ? 5 : 0;
  if (kDim == 256) return kArchitecture < 900 ? 4 : 5;
  return kDim >= 32 ? (kArchitecture < 900 ? 5 : 6) : 0;
}

}  // namespace d3q::cuda
