// The operators d3q::ms_deform_attn_cpu and d3q::ms_deform_attn_cpu_backward, on LibTorch's stable ABI.
// ops/ms_deform_attn.py checks more kindly; here every relation that keeps reads and writes in bounds is checked again.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu_kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRowsPerTask = 64;  // fewer rows are not worth a thread

void require(bool holds, const char* relation) {
  if (!holds) throw std::runtime_error(std::string("ms_deform_attn_cpu: ") + relation);
}

void require_input(const Tensor& tensor, ScalarType dtype, bool contiguous) {
  require(tensor.is_cpu(), "every tensor must be on the CPU");
  require(tensor.scalar_type() == dtype, "all tensors must have the dtype of value");
  require(!contiguous || tensor.is_contiguous(), "all tensors but value must be contiguous");
}

// First token of each level. Sizes are compared by division: their product could overflow.
std::vector<int64_t> level_starts(const std::vector<int64_t>& shapes, int64_t tokens) {
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

d3q::Problem checked_problem(const Tensor& value, const std::vector<int64_t>& shapes,
                             const std::vector<int64_t>& starts, const Tensor& locations, const Tensor& weights) {
  require(locations.dim() == 6 && weights.dim() == 5, "sampling_locations needs 6, attention_weights 5 dimensions");
  const d3q::Problem problem{value.size(0),     value.size(1),     value.size(2), value.size(3), weights.size(1),
                             weights.size(3),   weights.size(4),   shapes.data(), starts.data()};
  for (int i = 0; i < 5; ++i)
    require(locations.size(i) == weights.size(i), "sampling_locations must be attention_weights + (2,)");
  require(locations.size(5) == 2, "sampling_locations must be attention_weights + (2,)");
  require(weights.size(0) == problem.batch && weights.size(2) == problem.heads &&
              problem.levels == int64_t(starts.size()),
          "attention_weights must agree with value and spatial_shapes in batch, heads and levels");
  require(problem.dim <= 1 || value.stride(3) == 1, "channels of value must be adjacent");
  for (const Tensor* tensor : {&locations, &weights}) require_input(*tensor, value.scalar_type(), true);
  require_input(value, value.scalar_type(), false);
  return problem;
}

d3q::Strides strides_of(const Tensor& tensor) { return {tensor.stride(0), tensor.stride(1), tensor.stride(2)}; }

template <typename T>
d3q::Inputs<T> inputs_of(const Tensor& value, const Tensor& locations, const Tensor& weights) {
  return {value.const_data_ptr<T>(), strides_of(value), locations.const_data_ptr<T>(), weights.const_data_ptr<T>()};
}

bool use_avx2(bool allowed) {
#ifdef D3Q_HAS_AVX2
  return allowed && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  (void)allowed;
  return false;
#endif
}

template <typename T>
void run_forward(const d3q::Problem& problem, const d3q::Inputs<T>& inputs, T* output, bool avx2) {
  auto kernel = static_cast<void (*)(const d3q::Problem&, const d3q::Inputs<T>&, T*, int64_t, int64_t)>(
      d3q::baseline::forward);
#ifdef D3Q_HAS_AVX2
  if (avx2) kernel = d3q::avx2::forward;
#endif
  (void)avx2;
  const int64_t rows = problem.batch * problem.queries * problem.heads;
  torch::stable::parallel_for(0, rows, kRowsPerTask, [&](int64_t first, int64_t last) {
    kernel(problem, inputs, output, first, last);
  });
}

template <typename T>
void run_backward(const d3q::Problem& problem, const d3q::Inputs<T>& inputs, const d3q::Gradients<T>& gradients,
                  bool avx2) {
  auto kernel =
      static_cast<void (*)(const d3q::Problem&, const d3q::Inputs<T>&, const d3q::Gradients<T>&, int64_t, int64_t)>(
          d3q::baseline::backward);
#ifdef D3Q_HAS_AVX2
  if (avx2) kernel = d3q::avx2::backward;
#endif
  (void)avx2;
  torch::stable::parallel_for(0, problem.batch * problem.heads, 1, [&](int64_t first, int64_t last) {
    kernel(problem, inputs, gradients, first, last);
  });
}

Tensor forward(const Tensor& value, std::vector<int64_t> shapes, const Tensor& locations, const Tensor& weights,
               bool allow_avx2) {
  require(value.dim() == 4, "value needs 4 dimensions");
  const auto starts = level_starts(shapes, value.size(1));
  const auto problem = checked_problem(value, shapes, starts, locations, weights);
  Tensor output = torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.dim});
  const bool avx2 = use_avx2(allow_avx2);
  if (value.scalar_type() == ScalarType::Float) {
    run_forward(problem, inputs_of<float>(value, locations, weights), output.mutable_data_ptr<float>(), avx2);
  } else {
    require(value.scalar_type() == ScalarType::Double, "value must be float32 or float64");
    run_forward(problem, inputs_of<double>(value, locations, weights), output.mutable_data_ptr<double>(), avx2);
  }
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& output_gradient, const Tensor& value,
                                            std::vector<int64_t> shapes, const Tensor& locations,
                                            const Tensor& weights, bool allow_avx2) {
  require(value.dim() == 4, "value needs 4 dimensions");
  const auto starts = level_starts(shapes, value.size(1));
  const auto problem = checked_problem(value, shapes, starts, locations, weights);
  require_input(output_gradient, value.scalar_type(), true);
  require(output_gradient.dim() == 3 && output_gradient.size(0) == problem.batch &&
              output_gradient.size(1) == problem.queries && output_gradient.size(2) == problem.heads * problem.dim,
          "the gradient must be (B, Q, M*D)");
  Tensor value_gradient = torch::stable::empty_like(value);  // in the memory order of value
  require(problem.dim <= 1 || value_gradient.stride(3) == 1, "channels of value must be adjacent");
  torch::stable::zero_(value_gradient);
  Tensor location_gradient = torch::stable::empty_like(locations), weight_gradient = torch::stable::empty_like(weights);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const d3q::Gradients<T> gradients{output_gradient.const_data_ptr<T>(), value_gradient.mutable_data_ptr<T>(),
                                      strides_of(value_gradient), location_gradient.mutable_data_ptr<T>(),
                                      weight_gradient.mutable_data_ptr<T>()};
    run_backward(problem, inputs_of<T>(value, locations, weights), gradients, use_avx2(allow_avx2));
  };
  if (value.scalar_type() == ScalarType::Float) {
    run(float{});
  } else {
    require(value.scalar_type() == ScalarType::Double, "value must be float32 or float64");
    run(double{});
  }
  return {value_gradient, location_gradient, weight_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(d3q, library) {
  library.def(
      "ms_deform_attn_cpu(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights, "
      "bool allow_avx2=True) -> Tensor");
  library.def(
      "ms_deform_attn_cpu_backward(Tensor output_gradient, Tensor value, int[] spatial_shapes, "
      "Tensor sampling_locations, Tensor attention_weights, bool allow_avx2=True) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d3q, CPU, library) {
  library.impl("ms_deform_attn_cpu", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_cpu_backward", TORCH_BOX(&backward));
}
