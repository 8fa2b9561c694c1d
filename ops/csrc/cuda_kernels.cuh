// Multi-scale deformable attention on a GPU of compute capability 7.5 or newer.
//
// kLanes neighbouring threads of a warp serve one query of one head. Each works out where some of the samples fall and
// stages that in shared memory; then all of them walk over the samples, each loading its 16 bytes of the four cells.
// So an address is computed once per sample, not once per channel. Coordinates, weights and sums are fp32 whatever the
// dtype of value. Only threads of one warp share anything: no barrier is wider than a warp.
//
// tests/ops/cuda_emulator compiles this file with a C++ compiler and runs it on a CPU.
#pragma once
#include "cuda_types.cuh"

namespace d3q::cuda {

constexpr int kVectorBytes = 16, kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWideBlock = 256;  // threads; no block is wider

// Who does what for heads of kDim channels of type T.
template <typename T, int kDim>
struct Layout {
  static constexpr int kChannels = kVectorBytes / sizeof(T);  // in a vector
  static constexpr int kLanes = kDim / kChannels < kWarp ? kDim / kChannels : kWarp;
  static constexpr int kVectors = kDim / (kChannels * kLanes);  // per lane and cell
  static constexpr int kTaps = kLanes < 8 ? 2 : 1;              // samples that a lane stages per round
  static constexpr int kRound = kLanes * kTaps;
  static constexpr int kSlots = kWideBlock / kLanes;  // queries of the widest block
  static constexpr unsigned kOwn = kWholeWarp >> (kWarp - kLanes);  // bits of the lanes of the first query of a warp
  static constexpr int kPitch = kRound + 1;           // one more, or queries would meet in the same memory banks
  static_assert(kVectors * kLanes * kChannels == kDim, "whole vectors only");
};

template <typename T, int kDim>
struct alignas(kVectorBytes) Vector {
  T channel[Layout<T, kDim>::kChannels];
};

// The cell of one vector of this lane; offset is in vectors.
template <typename T, int kDim>
__device__ __forceinline__ Vector<T, kDim> load(const T* cells, uint32_t offset, int vector) {
  return (reinterpret_cast<const Vector<T, kDim>*>(cells) + vector * Layout<T, kDim>::kLanes)[offset];
}

// The four cells around a sample, in the order upper left, upper right, lower left, lower right.
struct Cells {
  float x = 0, y = 0;     // distance from the upper left one
  unsigned valid = 0;     // bit i: cell i is in the map
  uint4 offset = {0, 0, 0, 0};  // of each cell in vectors; where it is not valid, that of a cell that may be read
};

// No cell is valid where the sample touches none, which is also where its location is not a number.
__device__ __forceinline__ Cells locate(const Problem& p, float2 location, int level) {
  Cells cells;
  const int height = p.height[level], width = p.width[level];
  const float x = location.x * float(width) - 0.5f, y = location.y * float(height) - 0.5f;
  if (!(x > -1.f && y > -1.f && x < float(width) && y < float(height))) return cells;
  const int column = int(floorf(x)), row = int(floorf(y));
  cells.x = x - float(column);
  cells.y = y - float(row);
  const bool left = column >= 0, right = column + 1 < width, upper = row >= 0, lower = row + 1 < height;
  cells.valid = unsigned(upper && left) | unsigned(upper && right) << 1 | unsigned(lower && left) << 2 |
                unsigned(lower && right) << 3;
  const uint32_t token = p.start[level] + (upper ? row : 0) * width + (left ? column : 0);
  const uint32_t step = left && right ? p.token_stride : 0;
  const uint32_t line = upper && lower ? uint32_t(width) * p.token_stride : 0;
  cells.offset.x = token * p.token_stride;
  cells.offset.y = cells.offset.x + step;
  cells.offset.z = cells.offset.x + line;
  cells.offset.w = cells.offset.z + step;
  return cells;
}

__device__ __forceinline__ float share_of(const Cells& cells, int cell) {
  const float share = (cell & 1 ? cells.x : 1.f - cells.x) * (cell & 2 ? cells.y : 1.f - cells.y);
  return cells.valid >> cell & 1 ? share : 0.f;
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kWideBlock, (forward_blocks<T, kDim>()))
    forward_kernel(Problem p, const T* __restrict__ value, const float2* __restrict__ locations,
                   const float* __restrict__ weights, T* __restrict__ output) {
  using L = Layout<T, kDim>;
  __shared__ float4 shares[L::kSlots][L::kPitch];
  __shared__ uint4 offsets[L::kSlots][L::kPitch];
  const int slot = threadIdx.x / L::kLanes, lane = threadIdx.x % L::kLanes;
  const int query = blockIdx.x * (blockDim.x / L::kLanes) + slot, head = blockIdx.y, image = blockIdx.z;
  const bool live = query < p.queries;  // no early return: the barriers below need whole warps
  const int64_t row = (int64_t(image) * p.queries + query) * p.heads + head;
  const T* cells = value + image * p.image_stride + head * p.head_stride + lane * L::kChannels;

  float sum[L::kVectors][L::kChannels] = {};
  for (int first = 0; first < p.samples; first += L::kRound) {
    int count = 0;  // staged for this query: samples that touch no cell are not, as zero times infinity is no zero
#pragma unroll
    for (int tap = 0; tap < L::kTaps; ++tap) {
      const int sample = first + tap * L::kLanes + lane;
      Cells found;
      float weight = 0.f;
      if (live && sample < p.samples) {
        found = locate(p, locations[row * p.samples + sample], sample / p.points);
        weight = weights[row * p.samples + sample];
      }
      const unsigned touching = __ballot_sync(kWholeWarp, found.valid != 0) >> (threadIdx.x % kWarp - lane) & L::kOwn;
      const int place = count + __popc(touching & ((1u << lane) - 1));
      if (found.valid) {
        shares[slot][place] = {share_of(found, 0) * weight, share_of(found, 1) * weight, share_of(found, 2) * weight,
                               share_of(found, 3) * weight};
        offsets[slot][place] = found.offset;
      }
      count += __popc(touching);
    }
    __syncwarp();
#pragma unroll 4
    for (int place = 0; place < count; ++place) {
      const float4 share = shares[slot][place];
      const uint4 offset = offsets[slot][place];
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        const auto a = load<T, kDim>(cells, offset.x, v), b = load<T, kDim>(cells, offset.y, v);
        const auto c = load<T, kDim>(cells, offset.z, v), d = load<T, kDim>(cells, offset.w, v);
#pragma unroll
        for (int i = 0; i < L::kChannels; ++i) {  // four fused multiply-adds: a sum of products would take one more
          sum[v][i] += share.x * to_float(a.channel[i]);
          sum[v][i] += share.y * to_float(b.channel[i]);
          sum[v][i] += share.z * to_float(c.channel[i]);
          sum[v][i] += share.w * to_float(d.channel[i]);
        }
      }
    }
    __syncwarp();  // the next round overwrites what slower lanes still read
  }
  if (!live) return;
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) {
    Vector<T, kDim> rounded;
#pragma unroll
    for (int i = 0; i < L::kChannels; ++i) from_float(sum[v][i], rounded.channel[i]);
    reinterpret_cast<Vector<T, kDim>*>(output + row * kDim)[v * L::kLanes + lane] = rounded;
  }
}

// The sum over the lanes of a query, in each of them.
template <int kLanes>
__device__ __forceinline__ float sum_over_lanes(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
  return x;
}

// Cells of coarse maps get most additions. They are not collected in shared memory first: float additions there compile
// to a loop of load, add and compare-and-swap (ATOMS.CAST.SPIN, sm_80 and sm_90, nvcc 13.0), which contention repeats,
// where global memory takes one instruction that nobody waits for.
//
// These reductions bound the pass, by the 32-byte sectors that they touch. So the lanes of a query add side by side, not
// each the channels that it has loaded: a device without vector reductions would touch every sector four times in
// float32 and eight times in half precision, one that has them twice in half precision.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kAdded = 4;  // floats of one reduction
__device__ __forceinline__ void add_atomically(float* to, const float* gradient, float weight) {
  const float4 x = {gradient[0] * weight, gradient[1] * weight, gradient[2] * weight, gradient[3] * weight};
  atomicAdd(reinterpret_cast<float4*>(to), x);
}
#else
constexpr int kAdded = 1;
__device__ __forceinline__ void add_atomically(float* to, const float* gradient, float weight) {
  atomicAdd(to, gradient[0] * weight);
}
#endif

// A lane's channels of the gradient of a query's output, in float32: those of the cells that it loads, and those that it
// adds to the gradients of these cells.
template <typename T, int kDim>
struct OutputGradient {
  using L = Layout<T, kDim>;
  static constexpr int kOwn = L::kVectors * L::kChannels, kAdditions = kOwn / kAdded;  // of a cell
  float loaded[L::kVectors][L::kChannels] = {}, added[kOwn] = {};

  __device__ __forceinline__ void read(const T* output_gradient, int lane) {
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      const auto vector = load<T, kDim>(output_gradient, lane, v);
#pragma unroll
      for (int i = 0; i < L::kChannels; ++i) loaded[v][i] = to_float(vector.channel[i]);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if constexpr (kAdded == L::kChannels)
        added[i] = loaded[i / kAdded][i % kAdded];
      else
        added[i] = to_float(output_gradient[(i / kAdded * L::kLanes + lane) * kAdded + i % kAdded]);
    }
  }

  // This lane's share of the scalar product with a cell.
  __device__ __forceinline__ float dot(const T* cells, uint32_t offset) const {
    float sum = 0.f;
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      const auto cell = load<T, kDim>(cells, offset, v);
#pragma unroll
      for (int i = 0; i < L::kChannels; ++i) sum += loaded[v][i] * to_float(cell.channel[i]);
    }
    return sum;
  }

  // sums: where this lane's first addition goes in the cell of offset 0.
  __device__ __forceinline__ void add(float* sums, uint32_t offset, float weight) const {
    float* const to = sums + int64_t(offset) * L::kChannels;
#pragma unroll
    for (int i = 0; i < kAdditions; ++i) add_atomically(to + i * L::kLanes * kAdded, added + i * kAdded, weight);
  }
};

// As staged in shared memory: all that the lanes of a query need of one sample.
struct alignas(16) Tap {
  float x, y, weight;
  unsigned valid;
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kWideBlock, (backward_blocks<T, kDim>()))
    backward_kernel(Problem p, const T* __restrict__ output_gradient, const T* __restrict__ value,
                    const float2* __restrict__ locations, const float* __restrict__ weights,
                    float* __restrict__ value_gradient, float2* __restrict__ location_gradient,
                    float* __restrict__ weight_gradient) {
  using L = Layout<T, kDim>;
  __shared__ Tap taps[L::kSlots][L::kPitch];
  __shared__ uint4 offsets[L::kSlots][L::kPitch];
  const int slot = threadIdx.x / L::kLanes, lane = threadIdx.x % L::kLanes;
  const int query = blockIdx.x * (blockDim.x / L::kLanes) + slot, head = blockIdx.y, image = blockIdx.z;
  const bool live = query < p.queries;  // no early return: the barriers and shuffles below need whole warps
  const int64_t row = (int64_t(image) * p.queries + query) * p.heads + head;
  const int64_t origin = image * p.image_stride + head * p.head_stride;
  const T* const cells = value + origin + lane * L::kChannels;
  float* const sums = value_gradient + origin + lane * kAdded;

  OutputGradient<T, kDim> gradient;
  if (live) gradient.read(output_gradient + row * kDim, lane);
  for (int first = 0; first < p.samples; first += L::kRound) {
    float scale_x[L::kTaps], scale_y[L::kTaps];  // from pixels to locations, times the weight
#pragma unroll
    for (int tap = 0; tap < L::kTaps; ++tap) {
      const int place = tap * L::kLanes + lane, sample = first + place;
      Cells found;
      float weight = 0.f;
      scale_x[tap] = scale_y[tap] = 0.f;
      if (live && sample < p.samples) {
        const int level = sample / p.points;
        found = locate(p, locations[row * p.samples + sample], level);
        weight = weights[row * p.samples + sample];
        scale_x[tap] = float(p.width[level]) * weight;
        scale_y[tap] = float(p.height[level]) * weight;
      }
      taps[slot][place] = {found.x, found.y, weight, found.valid};
      offsets[slot][place] = found.offset;
    }
    __syncwarp();
#pragma unroll
    for (int tap = 0; tap < L::kTaps; ++tap) {
      float2 my_location = {0.f, 0.f};  // of the sample that this lane staged
      float my_weight = 0.f;
#pragma unroll 1
      for (int owner = 0; owner < L::kLanes; ++owner) {
        const int place = tap * L::kLanes + owner;
        if (first + place >= p.samples) break;  // for every lane alike
        const Tap sample = taps[slot][place];
        const uint4 offset = offsets[slot][place];
        const uint32_t offset_of[4] = {offset.x, offset.y, offset.z, offset.w};
        const Cells found = {sample.x, sample.y, sample.valid, offset};
        float dot[4];  // of the gradient and each cell, this lane's share
#pragma unroll
        for (int cell = 0; cell < 4; ++cell) {
          dot[cell] = gradient.dot(cells, offset_of[cell]);
          dot[cell] = sample.valid >> cell & 1 ? dot[cell] : 0.f;
        }
        const float left = 1.f - sample.x, upper = 1.f - sample.y;
        const float along_x = sum_over_lanes<L::kLanes>(upper * (dot[1] - dot[0]) + sample.y * (dot[3] - dot[2]));
        const float along_y = sum_over_lanes<L::kLanes>(left * (dot[2] - dot[0]) + sample.x * (dot[3] - dot[1]));
        const float sampled = sum_over_lanes<L::kLanes>(upper * (left * dot[0] + sample.x * dot[1]) +
                                                        sample.y * (left * dot[2] + sample.x * dot[3]));
        if (lane == owner) {
          my_location = {along_x * scale_x[tap], along_y * scale_y[tap]};
          my_weight = sampled;
        }
#pragma unroll
        for (int cell = 0; cell < 4; ++cell)
          if (sample.valid >> cell & 1) gradient.add(sums, offset_of[cell], share_of(found, cell) * sample.weight);
      }
      const int sample = first + tap * L::kLanes + lane;
      if (live && sample < p.samples) {
        location_gradient[row * p.samples + sample] = my_location;
        weight_gradient[row * p.samples + sample] = my_weight;
      }
    }
    __syncwarp();  // the next round overwrites what slower lanes still read
  }
}

}  // namespace d3q::cuda
