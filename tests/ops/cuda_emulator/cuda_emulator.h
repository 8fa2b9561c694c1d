// As much of CUDA as ops/csrc/cuda_kernels.cuh uses, on a CPU, for tests: every thread of a block is a fiber; blocks
// run one after another. Threads that can run are taken in an order that a seed shuffles again and again, so that code
// without the barriers that it needs computes something else. A barrier or shuffle that a named lane never reaches is
// an error. Not covered: races between blocks, and speed.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static  // one block at a time: static storage is the block's storage
#define D3Q_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)stream, emulator::launch(grid, block, [=] { kernel(__VA_ARGS__); }))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  using Limits = std::numeric_limits<float>;
  float size = std::ldexp(float(exponent ? mantissa + 1024 : mantissa), (exponent ? exponent : 1) - 25);
  if (exponent == 31) size = mantissa ? Limits::quiet_NaN() : Limits::infinity();
  return x.bits >> 15 ? -size : size;
}
inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7e00};
  if (std::fabs(x) >= 65520.f) return {uint16_t(sign | 0x7c00)};
  const int exponent = std::max(x == 0 ? -14 : std::ilogb(x), -14);
  const int mantissa = int(std::nearbyint(std::ldexp(std::fabs(x), 10 - exponent)));  // may round up to the next power
  return {uint16_t(sign | (mantissa + ((exponent + 14) << 10)))};
}
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace emulator {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 64 << 10;

enum class State { kRunnable, kAtBarrier, kDone };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  State state;
  unsigned mask;     // of the barrier at which it waits
  float shown[2];    // what it offers to shuffles, in turn: a lane can be one shuffle ahead of another
  unsigned shuffles;
};

struct Machine {
  std::vector<Thread> threads;
  int current = 0, size = 0;
  dim3 block_index, block_size;
  ucontext_t scheduler;
  std::function<void()> kernel;
  std::mt19937 random;
  const char* failure = nullptr;  // of a thread: an exception must not leave its fiber
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}
inline Thread& current_thread() { return machine().threads[machine().current]; }

inline void leave(State state) {
  Thread& thread = current_thread();
  thread.state = state;
  swapcontext(&thread.context, &machine().scheduler);
}

inline void run_thread() {
  machine().kernel();
  leave(State::kDone);
}

inline void start_thread(int i) {
  Thread& thread = machine().threads[i];
  if (!thread.stack) thread.stack.reset(new char[kStackBytes]);
  thread.index = dim3(i, 0, 0);
  thread.state = State::kRunnable;
  thread.shuffles = 0;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, run_thread, 0);
}

// Releases the lanes of a warp that wait at a barrier which all lanes of its mask have reached.
inline bool release(int first_of_warp) {
  Machine& m = machine();
  bool released = false;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Thread& thread = m.threads[first_of_warp + lane];
    if (thread.state != State::kAtBarrier) continue;
    const unsigned mask = thread.mask;
    if (!(mask >> lane & 1)) throw std::runtime_error("a lane waits at a barrier that does not name it");
    const auto named = [mask](int other) { return mask >> other & 1; };
    bool complete = true;
    for (int other = 0; other < kWarpSize; ++other) {
      const Thread& peer = m.threads[first_of_warp + other];
      if (named(other) && !(peer.state == State::kAtBarrier && peer.mask == mask)) complete = false;
    }
    for (int other = 0; other < kWarpSize && complete; ++other)
      if (named(other)) m.threads[first_of_warp + other].state = State::kRunnable;
    released |= complete;
  }
  return released;
}

inline void run_block() {
  Machine& m = machine();
  for (int i = 0; i < m.size; ++i) start_thread(i);
  std::vector<int> order(m.size);
  std::iota(order.begin(), order.end(), 0);
  for (;;) {
    std::shuffle(order.begin(), order.end(), m.random);
    bool progress = false;
    for (const int i : order) {
      if (m.threads[i].state != State::kRunnable) continue;
      m.current = i;
      progress = true;
      swapcontext(&m.scheduler, &m.threads[i].context);
    }
    for (int warp = 0; warp < m.size; warp += kWarpSize) progress |= release(warp);
    if (m.failure) throw std::runtime_error(m.failure);
    const auto done = [&m](int i) { return m.threads[i].state == State::kDone; };
    if (std::all_of(order.begin(), order.end(), done)) return;
    if (!progress) throw std::runtime_error("deadlock: lanes wait for others that never come");
  }
}

inline void launch(dim3 grid, dim3 block, std::function<void()> kernel) {
  Machine& m = machine();
  m.size = int(block.x);
  if (m.size % kWarpSize) throw std::runtime_error("the emulator runs whole warps only");
  if (int(m.threads.size()) < m.size) m.threads.resize(m.size);
  m.block_size = block;
  m.failure = nullptr;
  m.kernel = std::move(kernel);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        m.block_index = {x, y, z};
        run_block();
      }
}

}  // namespace emulator

#define threadIdx (emulator::current_thread().index)
#define blockIdx (emulator::machine().block_index)
#define blockDim (emulator::machine().block_size)

using std::min;

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::current_thread().mask = mask;
  emulator::leave(emulator::State::kAtBarrier);
}
inline float __shfl_xor_sync(unsigned mask, float x, int step) {
  emulator::Machine& m = emulator::machine();
  const int me = m.current;
  if (!(mask >> (me ^ step) % emulator::kWarpSize & 1)) m.failure = "a shuffle reads a lane that it does not name";
  const unsigned turn = m.threads[me].shuffles++ % 2;
  m.threads[me].shown[turn] = x;
  __syncwarp(mask);
  return m.threads[me ^ step].shown[turn];
}
inline void atomicAdd(float* to, float x) { *to += x; }
inline void atomicAdd(float4* to, float4 x) {
  if (reinterpret_cast<uintptr_t>(to) % alignof(float4)) emulator::machine().failure = "misaligned reduction";
  *to = {to->x + x.x, to->y + x.y, to->z + x.z, to->w + x.w};
}
