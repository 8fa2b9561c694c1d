// The operators d3q::ms_deform_attn_cpu and d3q::ms_deform_attn_cpu_backward, on LibTorch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifdef __linux__
#include <sys/mman.h>
#endif
#include <algorithm>
#include <tuple>
#include <vector>

#include "binding_checks.h"
#include "cpu_kernels.h"

namespace {

using d3q::require;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRowsPerTask = 64;  // fewer rows are not worth a thread
constexpr int64_t kThreadsPerHead = 2;  // from which two passes, which compute 1.7 times as much, are quicker than one
constexpr int64_t kBandsPerThread = 2;  // some bands have less to do
constexpr int64_t kReadsPerRow = 8;   // of value on average, from which copying one head's rows side by side pays

void require_input(const Tensor& tensor, ScalarType dtype, bool contiguous) {
  require(tensor.is_cpu(), "every tensor must be on the CPU");
  require(tensor.scalar_type() == dtype, "all tensors must have the dtype of value");
  require(!contiguous || tensor.is_contiguous(), "all tensors but value must be contiguous");
}

// Everything checked; it holds what the Problem points to.
struct CheckedProblem {
  std::vector<int32_t> height, width, start;
  d3q::Problem problem;

  CheckedProblem(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations,
                 const Tensor& weights) {
    const auto starts = d3q::level_starts(shapes, value);
    d3q::require_agreement(value, int64_t(starts.size()), locations, weights);
    require(value.size(1) <= INT32_MAX, "value must have fewer than 2^31 tokens");
    require(value.size(3) <= 1 || value.stride(3) == 1, "channels of value must be adjacent");
    for (const Tensor* tensor : {&locations, &weights}) require_input(*tensor, value.scalar_type(), true);
    require_input(value, value.scalar_type(), false);
    for (size_t level = 0; level < starts.size(); ++level) {
      height.insert(height.end(), weights.size(4), int32_t(shapes[2 * level]));
      width.insert(width.end(), weights.size(4), int32_t(shapes[2 * level + 1]));
      start.insert(start.end(), weights.size(4), int32_t(starts[level]));
    }
    problem = {value.size(0), value.size(2), value.size(3), weights.size(1), weights.size(4),
               {int64_t(start.size()), height.data(), width.data(), start.data()}};
  }
};

// The kernels write large outputs once: with 4 KiB pages, the first touch of each page costs as much as the work on it.
Tensor in_huge_pages(Tensor tensor) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const auto first = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t start = (first + kPage - 1) / kPage * kPage;
  const uintptr_t end = (first + tensor.numel() * tensor.element_size()) / kPage * kPage;
  if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);  // a refusal changes nothing
#endif
  return tensor;
}

Tensor head_major_like(const Tensor& value) {
  Tensor memory = torch::stable::new_empty(value, {value.size(0), value.size(2), value.size(1), value.size(3)});
  return torch::stable::transpose(in_huge_pages(memory), 1, 2);
}

bool needs_head_major(const d3q::Problem& problem, const Tensor& value) {
  const int64_t reads = 4 * problem.queries * problem.samples.count;
  return problem.heads > 1 && value.stride(1) != problem.dim && reads >= kReadsPerRow * value.size(1);
}

Tensor in_head_major(const Tensor& value) {
  Tensor copy = head_major_like(value);
  return torch::stable::copy_(copy, value);
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

// The functions of the variant that this processor runs best, for elements of type T.
template <typename T>
struct Kernels {
  using Problem = d3q::Problem;
  using Inputs = d3q::Inputs<T>;
  using Gradients = d3q::Gradients<T>;
  void (*forward)(const Problem&, const Inputs&, T*, int64_t, int64_t) = d3q::baseline::forward;
  void (*backward)(const Problem&, const Inputs&, const Gradients&, int64_t, int64_t) = d3q::baseline::backward;
  void (*backward_samples)(const Problem&, const Inputs&, const Gradients&, int64_t,
                           int64_t) = d3q::baseline::backward_samples;
  void (*backward_value)(const Problem&, const Inputs&, const Gradients&, const d3q::Band*,
                         const d3q::Band*) = d3q::baseline::backward_value;

  explicit Kernels([[maybe_unused]] bool avx2) {
#ifdef D3Q_HAS_AVX2
    if (!avx2) return;
    forward = d3q::avx2::forward;
    backward = d3q::avx2::backward;
    backward_samples = d3q::avx2::backward_samples;
    backward_value = d3q::avx2::backward_value;
#endif
  }
};

template <typename T>
void run_forward(const d3q::Problem& problem, const d3q::Inputs<T>& inputs, T* output, bool avx2) {
  const Kernels<T> kernels(avx2);
  const int64_t rows = problem.batch * problem.queries * problem.heads;
  torch::stable::parallel_for(0, rows, kRowsPerTask, [&](int64_t first, int64_t last) {
    kernels.forward(problem, inputs, output, first, last);
  });
}

// Of every level, image and head: enough for so many threads. A level is cut, as all levels have as many samples.
std::vector<d3q::Band> bands_of(const d3q::Problem& problem, int64_t threads) {
  std::vector<d3q::Band> bands;
  const int64_t levels = problem.points ? problem.samples.count / problem.points : 0;
  const int64_t wholes = problem.batch * problem.heads * levels;
  if (wholes == 0) return bands;
  const int64_t pieces = (kBandsPerThread * threads - 1) / wholes + 1;
  for (int64_t i = 0; i < wholes; ++i) {
    const int64_t level = i % levels, head = i / levels % problem.heads, image = i / levels / problem.heads;
    const auto& samples = problem.samples;
    const int64_t at = level * problem.points, start = samples.start[at];
    const int64_t tokens = int64_t(samples.height[at]) * samples.width[at], count = std::min(pieces, tokens);
    for (int64_t k = 0; k < count; ++k)
      bands.push_back({image, head, level, start + tokens * k / count, start + tokens * (k + 1) / count});
  }
  return bands;
}

// Bit for bit the same with any number of threads: every sum has one order.
template <typename T>
void run_backward(const d3q::Problem& problem, const d3q::Inputs<T>& inputs, const d3q::Gradients<T>& gradients,
                  bool avx2) {
  const Kernels<T> kernels(avx2);
  const int64_t heads = problem.batch * problem.heads, threads = torch::stable::get_num_threads();
  if (threads < kThreadsPerHead * heads) {
    torch::stable::parallel_for(0, heads, 1, [&](int64_t first, int64_t last) {
      kernels.backward(problem, inputs, gradients, first, last);
    });
    return;
  }
  torch::stable::parallel_for(0, heads * problem.queries, kRowsPerTask, [&](int64_t first, int64_t last) {
    kernels.backward_samples(problem, inputs, gradients, first, last);
  });
  const auto bands = bands_of(problem, threads);
  torch::stable::parallel_for(0, int64_t(bands.size()), 1, [&](int64_t first, int64_t last) {
    kernels.backward_value(problem, inputs, gradients, bands.data() + first, bands.data() + last);
  });
}

Tensor forward(const Tensor& value, std::vector<int64_t> shapes, const Tensor& locations, const Tensor& weights,
               bool allow_avx2) {
  const CheckedProblem checked(value, shapes, locations, weights);
  const d3q::Problem& problem = checked.problem;
  Tensor output = in_huge_pages(
      torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.dim}));
  const Tensor rows = needs_head_major(problem, value) ? in_head_major(value) : value;
  const bool avx2 = use_avx2(allow_avx2);
  if (value.scalar_type() == ScalarType::Float) {
    run_forward(problem, inputs_of<float>(rows, locations, weights), output.mutable_data_ptr<float>(), avx2);
  } else {
    require(value.scalar_type() == ScalarType::Double, "value must be float32 or float64");
    run_forward(problem, inputs_of<double>(rows, locations, weights), output.mutable_data_ptr<double>(), avx2);
  }
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& output_gradient, const Tensor& value,
                                            std::vector<int64_t> shapes, const Tensor& locations,
                                            const Tensor& weights, bool allow_avx2) {
  const CheckedProblem checked(value, shapes, locations, weights);
  const d3q::Problem& problem = checked.problem;
  require_input(output_gradient, value.scalar_type(), true);
  d3q::require_output_gradient(output_gradient, value, weights);
  const bool head_major = needs_head_major(problem, value);
  Tensor value_gradient = in_huge_pages(torch::stable::empty_like(value));  // in the memory order of value
  require(problem.dim <= 1 || value_gradient.stride(3) == 1, "channels of value must be adjacent");
  Tensor location_gradient = in_huge_pages(torch::stable::empty_like(locations));
  Tensor weight_gradient = in_huge_pages(torch::stable::empty_like(weights));
  Tensor rows = head_major ? in_head_major(value) : value;
  Tensor row_gradient = head_major ? head_major_like(value) : value_gradient;
  torch::stable::zero_(row_gradient);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const d3q::Gradients<T> gradients{output_gradient.const_data_ptr<T>(), row_gradient.mutable_data_ptr<T>(),
                                      strides_of(row_gradient), location_gradient.mutable_data_ptr<T>(),
                                      weight_gradient.mutable_data_ptr<T>()};
    run_backward(problem, inputs_of<T>(rows, locations, weights), gradients, use_avx2(allow_avx2));
  };
  if (value.scalar_type() == ScalarType::Float) {
    run(float{});
  } else {
    require(value.scalar_type() == ScalarType::Double, "value must be float32 or float64");
    run(double{});
  }
  rows = value;  // lets go of the copy before the next one
  if (head_major) torch::stable::copy_(value_gradient, row_gradient);
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
