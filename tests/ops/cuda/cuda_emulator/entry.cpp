// Runs the CUDA kernels in the emulator; tests/ops/cuda/emulated_kernels.py calls it and mirrors Call.
#define D3Q_CUDA_EMULATOR
#include "cuda_launch.cuh"

#include <string>

using namespace d3q::cuda;

struct Call {
  int64_t dtype, seed, dim, heads, batch, queries, points, levels;
  int64_t last_blocks;  // run only so many, the last ones; 0: all
  int64_t shift;        // bytes from the gradient of value, as the kernel sees it, to where additions go
  const int64_t *shapes, *strides;
  int64_t* counts;  // of reductions and of the sectors that they touch; null: not counted
};

uintptr_t added_to(const ForwardTensors&) { return 0; }
uintptr_t added_to(const BackwardTensors& tensors) { return reinterpret_cast<uintptr_t>(tensors.value_gradient); }

template <Dtype dtype, typename Tensors>
const char* run_emulated(const Call& c, const Tensors& tensors) {
  const Problem problem = make_problem(dtype, int(c.dim), int(c.heads), int(c.batch), int(c.queries), int(c.points),
                                       int(c.levels), c.shapes, c.strides);
  return start<dtype>(problem, tensors, 0, nullptr);
}

template <typename Tensors>
const char* dispatch(const Call& call, const Tensors& tensors) {
  static std::string message;
  emulator::machine().random.seed(unsigned(call.seed));
  emulator::machine().last_blocks = call.last_blocks;
  emulator::machine().additions = {added_to(tensors), call.shift, call.counts, {}};
  try {
    if (call.dtype == 0) return run_emulated<Dtype::kFloat>(call, tensors);
#ifndef D3Q_FLOAT_ONLY
    if (call.dtype == 1) return run_emulated<Dtype::kHalf>(call, tensors);
    if (call.dtype == 2) return run_emulated<Dtype::kBFloat16>(call, tensors);
#endif
    return "no such dtype";
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// Both return nullptr or what went wrong.
extern "C" const char* emulate_forward(const Call* call, const ForwardTensors* tensors) {
  return dispatch(*call, *tensors);
}
extern "C" const char* emulate_backward(const Call* call, const BackwardTensors* tensors) {
  return dispatch(*call, *tensors);
}
