// The operators d3q::ms_deform_attn_cuda and d3q::ms_deform_attn_cuda_backward, on LibTorch's stable ABI.
// The library must load where torch has no CUDA: it is not linked to libtorch_cuda, and asks for it when called.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>
#include <vector>

#include "binding_checks.h"
#include "cuda_kernels.h"

namespace {

using namespace d3q::cuda;
using d3q::require;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kLargestGrid = 65535;  // of blocks in the second and third dimension: heads and images
constexpr int64_t kLargestInt = 0x7fffffff;

void* current_stream(int device) {
  using Get = int32_t (*)(int32_t device, void** stream);  // aoti_torch_get_current_cuda_stream of torch >= 2.10
  static const auto get = [] {
    void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);  // only where torch has loaded it
    return torch_cuda ? reinterpret_cast<Get>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  require(get != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  require(get(device, &stream) == 0, "torch gives no current CUDA stream");
  return stream;
}

void require_input(const Tensor& tensor, const Tensor& value, ScalarType dtype) {
  require(tensor.is_cuda() && tensor.get_device_index() == value.get_device_index(), "all tensors must be on one GPU");
  require(tensor.scalar_type() == dtype, "locations and weights must be float32, gradients have the dtype of value");
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  require(address % 16 == 0, "tensors must start at multiples of 16 bytes");
}

Dtype dtype_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat;
    case ScalarType::Half: return Dtype::kHalf;
    default:
      require(value.scalar_type() == ScalarType::BFloat16, "value must be float32, float16 or bfloat16");
      return Dtype::kBFloat16;
  }
}

// Checks everything, above all that nothing overflows: the kernels count queries and samples in 32 bits, and the
// vectors of an image too.
Problem checked_problem(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations,
                        const Tensor& weights) {
  const auto starts = d3q::level_starts(shapes, value);
  d3q::require_agreement(value, int64_t(starts.size()), locations, weights);
  const Dtype dtype = dtype_of(value);
  const int64_t channels = dtype == Dtype::kFloat ? 4 : 8;  // in 16 bytes
  const int64_t levels = weights.size(3), points = weights.size(4);
  require(is_supported(value.size(3)), "heads must be 8, 16, 32, 64, 128 or 256 wide");
  require(levels <= kMaxLevels, "at most 16 levels");
  require(points <= (kLargestInt - 256) / levels, "too many points");
  require(value.size(2) <= kLargestGrid && value.size(0) <= kLargestGrid, "at most 65535 heads and images");
  require(weights.size(1) <= kLargestInt - 256 && value.size(1) <= kLargestInt, "too many queries or tokens");
  require(value.stride(3) == 1, "channels of value must be adjacent");
  require(locations.is_contiguous() && weights.is_contiguous(), "all tensors but value must be contiguous");
  require_input(value, value, value.scalar_type());
  require_input(locations, value, ScalarType::Float);
  require_input(weights, value, ScalarType::Float);
  int64_t strides[3];
  for (int i = 0; i < 3; ++i) {
    strides[i] = value.size(i) > 1 ? value.stride(i) : 0;  // that of a single element may be anything
    require(strides[i] >= 0 && strides[i] % channels == 0, "strides of value must be multiples of 16 bytes");
  }
  require(strides[1] / channels <= 0xffffffffll / value.size(1), "an image of value must be smaller than 64 GiB");
  return make_problem(dtype, int(value.size(3)), int(value.size(2)), int(value.size(0)), int(weights.size(1)),
                      int(points), int(levels), shapes.data(), strides);
}

template <typename Tensors>
const char* start_for(Dtype dtype, const Problem& problem, const Tensors& tensors, int device, void* stream) {
  switch (dtype) {
    case Dtype::kFloat: return start<Dtype::kFloat>(problem, tensors, device, stream);
    case Dtype::kHalf: return start<Dtype::kHalf>(problem, tensors, device, stream);
    default: return start<Dtype::kBFloat16>(problem, tensors, device, stream);
  }
}

// Raises what the launch reports. Errors inside a kernel show later, as with every kernel of torch.
template <typename Tensors>
void run(const Problem& problem, const Tensors& tensors, const Tensor& value) {
  if (problem.batch == 0 || problem.queries == 0 || problem.heads == 0) return;  // an empty grid is an error
  const int device = value.get_device_index();
  const char* error = start_for(dtype_of(value), problem, tensors, device, current_stream(device));
  if (error)
    throw std::runtime_error("ms_deform_attn: " + std::string(error) +
                             " (python -m ops.build compiles for the devices of TORCH_CUDA_ARCH_LIST)");
}

Tensor forward(const Tensor& value, std::vector<int64_t> shapes, const Tensor& locations,
                    const Tensor& weights) {
  const Problem problem = checked_problem(value, shapes, locations, weights);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  Tensor output = torch::stable::new_empty(value, {problem.batch, problem.queries, value.size(2) * value.size(3)});
  const ForwardTensors tensors{value.const_data_ptr(), locations.const_data_ptr<float>(),
                               weights.const_data_ptr<float>(), output.mutable_data_ptr()};
  run(problem, tensors, value);
  return output;
}

// The gradients are float32 whatever the dtype of value: half precision would lose sums over many queries.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& output_gradient, const Tensor& value,
                                                 std::vector<int64_t> shapes, const Tensor& locations,
                                                 const Tensor& weights) {
  const Problem problem = checked_problem(value, shapes, locations, weights);
  d3q::require_output_gradient(output_gradient, value, weights);
  require_input(output_gradient, value, value.scalar_type());
  require(output_gradient.is_contiguous() && value.is_contiguous(), "value and the gradient must be contiguous");
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const std::vector<int64_t> size{value.size(0), value.size(1), value.size(2), value.size(3)};
  Tensor value_gradient = torch::stable::new_zeros(value, size, ScalarType::Float);
  Tensor location_gradient = torch::stable::empty_like(locations), weight_gradient = torch::stable::empty_like(weights);
  const BackwardTensors tensors{output_gradient.const_data_ptr(),
                                value.const_data_ptr(),
                                locations.const_data_ptr<float>(),
                                weights.const_data_ptr<float>(),
                                value_gradient.mutable_data_ptr<float>(),
                                location_gradient.mutable_data_ptr<float>(),
                                weight_gradient.mutable_data_ptr<float>()};
  run(problem, tensors, value);
  return {value_gradient, location_gradient, weight_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(d3q, library) {
  library.def(
      "ms_deform_attn_cuda(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
      "-> Tensor");
  library.def(
      "ms_deform_attn_cuda_backward(Tensor output_gradient, Tensor value, int[] spatial_shapes, "
      "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d3q, CUDA, library) {
  library.impl("ms_deform_attn_cuda", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_cuda_backward", TORCH_BOX(&backward));
}
