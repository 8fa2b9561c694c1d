// As much of CUDA as ops/csrc/cuda_kernels.cuh uses, on a CPU, for tests: every thread of a block is a fiber; blocks
// run one after another. Threads that can run are taken in an order that a seed shuffles again and again, so that code
// without the barriers that it needs computes something else. A barrier or shuffle that a named lane never reaches is
// an error. Shared memory is NaN when a block starts. What is added atomically is collected elsewhere than in the
// tensor that the kernel sees (Machine::additions), so a plain addition in its place adds nothing to the result.
// Not covered: other races between blocks, and speed.
#pragma once
#include <link.h>
#include <ucontext.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "emulated_numbers.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block at a time: static storage is the block's storage. Thread-local, it lies together, so that it can be filled
// with NaN; for AddressSanitizer it must be static, which puts fences around it.
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#define D3Q_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)stream, emulator::launch(grid, block, [=] { kernel(__VA_ARGS__); }))

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration = 9 };
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

namespace emulator {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kLargestGrid[] = {0x7fffffffu, 65535, 65535}, kLargestBlock = 1024;
constexpr uintptr_t kSectorBytes = 32;

enum class State { kRunnable, kAtBarrier, kDone };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  State state;
  unsigned mask;     // of the barrier at which it waits
  float shown[2];    // what it offers to shuffles, in turn: a lane can be one shuffle ahead of another
  unsigned shuffles;
  unsigned barriers, reductions;  // so many passed, so many since the last barrier
};

// What atomic additions do. The lanes of a warp that are as far as each other after the same barrier execute one
// instruction together, if they agree on which cells they skip.
struct Additions {
  uintptr_t seen = 0;       // where the tensor starts that the kernel adds to
  int64_t shift = 0;        // bytes from there to the sums
  int64_t* counts = nullptr;  // instructions, and sectors that they touch; null where they are not counted
  std::map<std::tuple<int, unsigned, unsigned>, std::set<uintptr_t>> touched;  // sectors of each instruction
};

struct Machine {
  std::vector<Thread> threads;
  int current = 0, size = 0;
  dim3 block_index, block_size;
  ucontext_t scheduler;
  std::function<void()> kernel;
  std::mt19937 random;
  const char* failure = nullptr;  // of a thread: an exception must not leave its fiber
  Additions additions;
  int64_t last_blocks = 0;  // run only so many, the last ones; 0: all
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
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(thread.stack.get(), kStackBytes);  // left by a function that never returned
#endif
  thread.index = dim3(i, 0, 0);
  thread.state = State::kRunnable;
  thread.shuffles = thread.barriers = thread.reductions = 0;
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

inline thread_local char in_shared_memory;

// All bits one: a NaN in float32. The thread-local storage of this library is the shared memory of all its kernels.
inline int spoil_if_ours(dl_phdr_info* library, size_t, void*) {
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const auto& segment = library->dlpi_phdr[i];
    char* const start = static_cast<char*>(library->dlpi_tls_data);
    if (segment.p_type != PT_TLS || !start || &in_shared_memory < start || &in_shared_memory >= start + segment.p_memsz)
      continue;
    std::memset(start, 0xff, segment.p_memsz);
    return 1;
  }
  return 0;
}

inline void spoil_shared_memory() {
#ifndef __SANITIZE_ADDRESS__
  in_shared_memory = 0;  // storage of a library that was loaded late comes with the first use
  if (!dl_iterate_phdr(spoil_if_ours, nullptr)) throw std::runtime_error("the emulator does not find shared memory");
#endif
}

inline void count_reductions() {
  Additions& additions = machine().additions;
  for (const auto& [instruction, sectors] : additions.touched) {
    additions.counts[0] += 1;
    additions.counts[1] += int64_t(sectors.size());
  }
  additions.touched.clear();
}

inline void run_block() {
  Machine& m = machine();
  spoil_shared_memory();
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
    if (std::all_of(order.begin(), order.end(), done)) return count_reductions();
    if (!progress) throw std::runtime_error("deadlock: lanes wait for others that never come");
  }
}

// As a device does, takes no grid that is too large, or empty.
inline bool is_allowed(dim3 grid, dim3 block) {
  const unsigned blocks[] = {grid.x, grid.y, grid.z}, threads[] = {block.x, block.y, block.z};
  for (int i = 0; i < 3; ++i)
    if (blocks[i] < 1 || blocks[i] > kLargestGrid[i] || threads[i] < 1 || threads[i] > kLargestBlock) return false;
  return uint64_t(block.x) * block.y * block.z <= kLargestBlock;
}

inline void launch(dim3 grid, dim3 block, std::function<void()> kernel) {
  Machine& m = machine();
  if (!is_allowed(grid, block)) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  m.size = int(block.x);
  if (m.size % kWarpSize || block.y * block.z > 1) throw std::runtime_error("the emulator runs rows of whole warps only");
  if (int(m.threads.size()) < m.size) m.threads.resize(m.size);
  m.block_size = block;
  m.failure = nullptr;
  m.kernel = std::move(kernel);
  const int64_t count = int64_t(grid.x) * grid.y * grid.z;
  for (int64_t i = m.last_blocks ? std::max<int64_t>(count - m.last_blocks, 0) : 0; i < count; ++i) {
    m.block_index = dim3(unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y));
    run_block();
  }
}

// Where an addition of `bytes` goes that the kernel makes to `to`.
inline void* added_to(void* to, unsigned bytes) {
  Machine& m = machine();
  const auto address = reinterpret_cast<uintptr_t>(to);
  if (address % bytes) m.failure = "misaligned reduction";
  Thread& thread = current_thread();
  if (m.additions.counts)
    m.additions.touched[{m.current / kWarpSize, thread.barriers, thread.reductions++}].insert(
        (address - m.additions.seen) / kSectorBytes);
  return static_cast<char*>(to) + m.additions.shift;
}

}  // namespace emulator

#define threadIdx (emulator::current_thread().index)
#define blockIdx (emulator::machine().block_index)
#define blockDim (emulator::machine().block_size)

using std::min;

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::Thread& thread = emulator::current_thread();
  thread.mask = mask;
  thread.barriers++;
  thread.reductions = 0;
  emulator::leave(emulator::State::kAtBarrier);
}

namespace emulator {

// Shows x to the lanes of the mask; what each of them has shown is then in shown[turn].
inline unsigned show(unsigned mask, float x) {
  Thread& thread = current_thread();
  const unsigned turn = thread.shuffles++ % 2;
  thread.shown[turn] = x;
  __syncwarp(mask);
  return turn;
}

}  // namespace emulator

inline float __shfl_xor_sync(unsigned mask, float x, int step) {
  emulator::Machine& m = emulator::machine();
  const int me = m.current;
  if (!(mask >> (me ^ step) % emulator::kWarpSize & 1)) m.failure = "a shuffle reads a lane that it does not name";
  return m.threads[me ^ step].shown[emulator::show(mask, x)];
}
inline unsigned __ballot_sync(unsigned mask, bool x) {
  emulator::Machine& m = emulator::machine();
  const int first = m.current / emulator::kWarpSize * emulator::kWarpSize;
  const unsigned turn = emulator::show(mask, x ? 1.f : 0.f);
  unsigned result = 0;
  for (int lane = 0; lane < emulator::kWarpSize; ++lane)
    if (mask >> lane & 1 && m.threads[first + lane].shown[turn] != 0) result |= 1u << lane;
  return result;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

inline void atomicAdd(float* to, float x) { *static_cast<float*>(emulator::added_to(to, sizeof x)) += x; }
inline void atomicAdd(float4* to, float4 x) {
  float4& sum = *static_cast<float4*>(emulator::added_to(to, sizeof x));
  sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w};
}
