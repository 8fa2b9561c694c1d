// What cuda_bindings.cpp calls. Holds no CUDA headers: the binding is compiled by the C++ compiler alone.
#pragma once
#include <cstdint>

namespace d3q::cuda {

constexpr int kMaxLevels = 16;

enum class Dtype { kFloat, kHalf, kBFloat16 };

// Passed to the kernels by value: it lies in the constant bank, and the host never waits for the device to read it.
struct Problem {
  int dim, heads, batch, queries, points, samples;  // samples = levels * points of one query and head
  // Of value and of its gradient, which agree. The first two in elements, the last in vectors of 16 bytes: so 32 bits
  // of offset reach 64 GiB inside an image.
  int64_t image_stride, head_stride;
  uint32_t token_stride;
  int height[kMaxLevels], width[kMaxLevels], start[kMaxLevels];  // of each level; start: its first token
};

// shapes: (height, width) of each level; strides: of value's images, tokens and heads, in elements.
inline Problem make_problem(Dtype dtype, int dim, int heads, int batch, int queries, int points, int levels,
                            const int64_t* shapes, const int64_t* strides) {
  Problem problem{dim, heads, batch, queries, points, levels * points, strides[0], strides[2], 0, {}, {}, {}};
  problem.token_stride = uint32_t(strides[1] / (dtype == Dtype::kFloat ? 4 : 8));
  for (int level = 0, start = 0; level < levels; ++level) {
    problem.height[level] = int(shapes[2 * level]);
    problem.width[level] = int(shapes[2 * level + 1]);
    problem.start[level] = start;
    start += problem.height[level] * problem.width[level];
  }
  return problem;
}

// All of them contiguous but value, whose channels are adjacent; every pointer at a multiple of 16 bytes.
struct ForwardTensors {
  const void* value;       // (B, S, M, D)
  const float* locations;  // (B, Q, M, L, P, 2)
  const float* weights;    // (B, Q, M, L, P)
  void* output;            // (B, Q, M*D), in the dtype of value
};

struct BackwardTensors {
  const void* output_gradient;  // (B, Q, M*D), in the dtype of value
  const void* value;
  const float* locations;
  const float* weights;
  float* value_gradient;  // with the strides of value; zero at first
  float* location_gradient;
  float* weight_gradient;
};

// Whether there are kernels for heads of this width.
constexpr bool is_supported(int64_t dim) {
  return dim == 8 || dim == 16 || dim == 32 || dim == 64 || dim == 128 || dim == 256;
}

// Starts a kernel, forward or backward by the kind of tensors, on a device's stream; returns an error, or nullptr.
template <Dtype dtype, typename Tensors>
const char* start(const Problem& problem, const Tensors& tensors, int device, void* stream);

}  // namespace d3q::cuda
