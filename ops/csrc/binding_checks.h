// Relations that keep the kernels' reads and writes in bounds, whatever device they run on. ops/checks.py says more
// kindly what is wrong; here everything is checked again.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace d3q {

inline void require(bool holds, const char* relation) {
  if (!holds) throw std::runtime_error(std::string("ms_deform_attn: ") + relation);
}

// First token of each level. Sizes are compared by division: their product could overflow.
inline std::vector<int64_t> level_starts(const std::vector<int64_t>& shapes, const torch::stable::Tensor& value) {
  require(value.dim() == 4, "value needs 4 dimensions");
  const int64_t tokens = value.size(1);
  require(!shapes.empty() && shapes.size() % 2 == 0, "spatial_shapes must be pairs (height, width), one at least");
  std::vector<int64_t> starts;
  int64_t start = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    const int64_t height = shapes[i], width = shapes[i + 1];
    require(height > 0 && width > 0, "spatial_shapes must be positive");
    require(height <= (tokens - start) / width, "value must have sum(height * width) tokens");
    starts.push_back(start);
    start += height * width;
  }
  require(start == tokens, "value must have sum(height * width) tokens");
  return starts;
}

// After level_starts.
inline void require_agreement(const torch::stable::Tensor& value, int64_t levels,
                              const torch::stable::Tensor& locations, const torch::stable::Tensor& weights) {
  require(locations.dim() == 6 && weights.dim() == 5, "sampling_locations needs 6, attention_weights 5 dimensions");
  for (int i = 0; i < 5; ++i)
    require(locations.size(i) == weights.size(i), "sampling_locations must be attention_weights + (2,)");
  require(locations.size(5) == 2, "sampling_locations must be attention_weights + (2,)");
  require(weights.size(0) == value.size(0) && weights.size(2) == value.size(2) && levels == weights.size(3),
          "attention_weights must agree with value and spatial_shapes in batch, heads and levels");
}

inline void require_output_gradient(const torch::stable::Tensor& gradient, const torch::stable::Tensor& value,
                                    const torch::stable::Tensor& weights) {
  require(gradient.dim() == 3 && gradient.size(0) == value.size(0) && gradient.size(1) == weights.size(1) &&
              gradient.size(2) == value.size(2) * value.size(3),
          "the gradient must be (B, Q, M*D)");
}

}  // namespace d3q
