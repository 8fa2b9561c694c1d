// Multi-scale deformable attention on a CPU. Compiled once for any processor and once for AVX2 and FMA, with
// D3Q_VARIANT as the namespace. No header here defines an inline function and all helpers are local to the file:
// the linker could otherwise take the AVX2 copy of a shared one for both.
#include "cpu_kernels.h"

namespace d3q {
namespace {

constexpr int kBlock = 32;  // samples that are located at once

// The four cells around each sample of a block: upper left, upper right, lower left, lower right. One array per
// quantity, so that the compiler computes many samples at once.
template <typename T>
struct Block {
  int32_t token[4][kBlock];  // below zero where the cell is outside the map
  T share[4][kBlock];        // of the cell, by bilinear interpolation
  T x[kBlock], y[kBlock];    // distance from the upper left cell
};

// All four cells are outside for samples whose location is not a number.
template <typename T>
void locate(const Samples& samples, int64_t first, int count, const T* __restrict__ locations,
            Block<T>& __restrict__ block) {
  for (int i = 0; i < count; ++i) {
    const int32_t width = samples.width[first + i], height = samples.height[first + i];
    T x = locations[2 * i] * T(width) - T(0.5), y = locations[2 * i + 1] * T(height) - T(0.5);
    const bool near = (x > T(-1)) & (y > T(-1)) & (x < T(width)) & (y < T(height));
    x = near ? x : T(0);
    y = near ? y : T(0);
    int32_t column = int32_t(x), row = int32_t(y);
    column -= T(column) > x;  // now rounded down
    row -= T(row) > y;
    x -= T(column);
    y -= T(row);
    const bool left = column >= 0, right = column + 1 < width, upper = row >= 0, lower = row + 1 < height;
    const int32_t token = samples.start[first + i] + row * width + column;
    block.token[0][i] = near & upper & left ? token : -1;
    block.token[1][i] = near & upper & right ? token + 1 : -1;
    block.token[2][i] = near & lower & left ? token + width : -1;
    block.token[3][i] = near & lower & right ? token + width + 1 : -1;
    block.share[0][i] = (1 - y) * (1 - x);
    block.share[1][i] = (1 - y) * x;
    block.share[2][i] = y * (1 - x);
    block.share[3][i] = y * x;
    block.x[i] = x;
    block.y[i] = y;
  }
}

// Rows of any width: sums live in the output itself.
template <typename T>
struct AnySum {
  T* __restrict__ output;
  int64_t dim;
  AnySum(T* output, int64_t dim) : output(output), dim(dim) {
    for (int64_t c = 0; c < dim; ++c) output[c] = 0;
  }
  void add(const T* __restrict__ row, T weight) {
    for (int64_t c = 0; c < dim; ++c) output[c] += weight * row[c];
  }
  void store() {}
};

template <typename T>
struct AnyGradient {
  using Part = T;  // of a dot product
  const T* __restrict__ gradient;
  int64_t dim;
  AnyGradient(const T* gradient, int64_t dim) : gradient(gradient), dim(dim) {}
  // <gradient, row>
  inline __attribute__((always_inline)) T dot(const T* __restrict__ row) const {
    T partial[8] = {}, sum = 0;
    int64_t c = 0;
    for (; c + 8 <= dim; c += 8)
      for (int k = 0; k < 8; ++k) partial[k] += gradient[c + k] * row[c + k];
    for (; c < dim; ++c) sum += gradient[c] * row[c];
    for (int k = 0; k < 8; ++k) sum += partial[k];
    return sum;
  }
  inline __attribute__((always_inline)) void add(T* __restrict__ row_gradient, T weight) const {
    for (int64_t c = 0; c < dim; ++c) row_gradient[c] += weight * gradient[c];
  }
  inline __attribute__((always_inline)) T dot_and_add(const T* __restrict__ row, T* __restrict__ row_gradient,
                                                      T weight) const {
    const T sum = dot(row);
    add(row_gradient, weight);
    return sum;
  }
  static void finish(const T part[4], T* to, int stride) {
    for (int k = 0; k < 4; ++k) to[k * stride] = part[k];
  }
};

typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void save(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }

// Elements of two vectors, counted through both. Clang knows one name for it, GCC before 12 only the other.
#ifdef __clang__
#define D3Q_SHUFFLE __builtin_shufflevector
#else
typedef int32_t Index __attribute__((vector_size(32)));
#define D3Q_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Index{__VA_ARGS__})
#endif

// Rows of N * 8 floats: sums live in registers.
template <int N>
struct VectorSum {
  float* output;
  Vector sum[N];
  VectorSum(float* output, int64_t) : output(output), sum{} {}
  inline __attribute__((always_inline)) void add(const float* row, float weight) {
    for (int k = 0; k < N; ++k) sum[k] += load(row + 8 * k) * weight;
  }
  void store() {
    for (int k = 0; k < N; ++k) save(output + 8 * k, sum[k]);
  }
};

template <int N>
struct VectorGradient {
  using Part = Vector;
  Vector gradient[N];
  VectorGradient(const float* from, int64_t) {
    for (int k = 0; k < N; ++k) gradient[k] = load(from + 8 * k);
  }
  // Its elements add up to <gradient, row>.
  inline __attribute__((always_inline)) Vector dot(const float* row) const {
    Vector sum = {};
    for (int k = 0; k < N; ++k) sum += gradient[k] * load(row + 8 * k);
    return sum;
  }
  inline __attribute__((always_inline)) void add(float* row_gradient, float weight) const {
    for (int k = 0; k < N; ++k) save(row_gradient + 8 * k, load(row_gradient + 8 * k) + gradient[k] * weight);
  }
  // Both at once, channel by channel.
  inline __attribute__((always_inline)) Vector dot_and_add(const float* row, float* row_gradient, float weight) const {
    Vector sum = {};
    for (int k = 0; k < N; ++k) {
      sum += gradient[k] * load(row + 8 * k);
      save(row_gradient + 8 * k, load(row_gradient + 8 * k) + gradient[k] * weight);
    }
    return sum;
  }
  // The sums of the elements of four vectors, by two exchanges of halves.
  static inline __attribute__((always_inline)) void finish(const Vector part[4], float* to, int stride) {
    const Vector upper = D3Q_SHUFFLE(part[0], part[1], 0, 8, 1, 9, 4, 12, 5, 13) +
                         D3Q_SHUFFLE(part[0], part[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const Vector lower = D3Q_SHUFFLE(part[2], part[3], 0, 8, 1, 9, 4, 12, 5, 13) +
                         D3Q_SHUFFLE(part[2], part[3], 2, 10, 3, 11, 6, 14, 7, 15);
    const Vector sums = D3Q_SHUFFLE(upper, lower, 0, 1, 8, 9, 4, 5, 12, 13) +
                        D3Q_SHUFFLE(upper, lower, 2, 3, 10, 11, 6, 7, 14, 15);
    for (int k = 0; k < 4; ++k) to[k * stride] = sums[k] + sums[k + 4];
  }
};

template <typename T>
inline void prefetch(const T* from, int64_t count) {
  const char* first = reinterpret_cast<const char*>(from);
  for (int64_t at = 0; at < count * int64_t(sizeof(T)); at += 64) __builtin_prefetch(first + at);
}

constexpr int64_t kAhead = 4;  // queries: one head's rows are too far apart for the processor to foresee the next

template <typename T, typename Sum>
void forward_rows(const Problem& p, const Inputs<T>& inputs, T* output, int64_t first, int64_t last) {
  const Strides& strides = inputs.value_strides;
  const int64_t samples = p.samples.count;
  Block<T> block;
  for (int64_t j = first; j < last; ++j) {
    const int64_t query = j % p.queries, head = j / p.queries % p.heads, image = j / p.queries / p.heads;
    const int64_t i = (image * p.queries + query) * p.heads + head;
    const T* values = inputs.value + image * strides.batch + head * strides.head;
    if (query + kAhead < p.queries) {
      prefetch(inputs.locations + 2 * (i + kAhead * p.heads) * samples, 2 * samples);
      prefetch(inputs.weights + (i + kAhead * p.heads) * samples, samples);
    }
    Sum sum(output + i * p.dim, p.dim);
    for (int64_t begin = 0; begin < samples; begin += kBlock) {
      const int count = int(samples - begin < kBlock ? samples - begin : kBlock);
      const T* weights = inputs.weights + i * samples + begin;
      locate(p.samples, begin, count, inputs.locations + 2 * (i * samples + begin), block);
      for (int s = 0; s < count; ++s)
        for (int k = 0; k < 4; ++k)
          if (block.token[k][s] >= 0)
            sum.add(values + block.token[k][s] * strides.token, block.share[k][s] * weights[s]);
    }
    sum.store();
  }
}

// dot: of the output's gradient with each sample's four rows, zero for a row that is outside.
template <typename T>
void store_gradients(const Samples& samples, int64_t first, int count, const Block<T>& __restrict__ block,
                     const T (*__restrict__ dot)[kBlock], const T* __restrict__ weights, T* __restrict__ locations,
                     T* __restrict__ weight_gradients) {
  for (int i = 0; i < count; ++i) {
    const T x = block.x[i], y = block.y[i], left = 1 - x, upper = 1 - y;
    weight_gradients[i] = upper * (left * dot[0][i] + x * dot[1][i]) + y * (left * dot[2][i] + x * dot[3][i]);
    const T by_x = upper * (dot[1][i] - dot[0][i]) + y * (dot[3][i] - dot[2][i]);
    const T by_y = left * (dot[2][i] - dot[0][i]) + x * (dot[3][i] - dot[1][i]);
    locations[2 * i] = T(samples.width[first + i]) * weights[i] * by_x;
    locations[2 * i + 1] = T(samples.height[first + i]) * weights[i] * by_y;
  }
}

template <typename T, typename Gradient>
void backward_head(const Problem& p, const Inputs<T>& inputs, const Gradients<T>& gradients, int64_t image,
                   int64_t head) {
  const Strides &from = inputs.value_strides, &to = gradients.value_strides;
  const int64_t samples = p.samples.count;
  const T* values = inputs.value + image * from.batch + head * from.head;
  T* value_gradients = gradients.value + image * to.batch + head * to.head;
  Block<T> block;
  T dot[4][kBlock];
  for (int64_t query = 0; query < p.queries; ++query) {
    const int64_t i = (image * p.queries + query) * p.heads + head;
    if (query + kAhead < p.queries) {
      prefetch(inputs.locations + 2 * (i + kAhead * p.heads) * samples, 2 * samples);
      prefetch(inputs.weights + (i + kAhead * p.heads) * samples, samples);
      prefetch(gradients.output + (i + kAhead * p.heads) * p.dim, p.dim);
    }
    const Gradient gradient(gradients.output + i * p.dim, p.dim);
    for (int64_t begin = 0; begin < samples; begin += kBlock) {
      const int count = int(samples - begin < kBlock ? samples - begin : kBlock);
      const int64_t at = i * samples + begin;
      const T* weights = inputs.weights + at;
      locate(p.samples, begin, count, inputs.locations + 2 * at, block);
      for (int s = 0; s < count; ++s) {
        typename Gradient::Part part[4] = {};
        for (int k = 0; k < 4; ++k) {
          const int64_t token = block.token[k][s];
          if (token >= 0)
            part[k] = gradient.dot_and_add(values + token * from.token, value_gradients + token * to.token,
                                           block.share[k][s] * weights[s]);
        }
        Gradient::finish(part, &dot[0][s], kBlock);
      }
      store_gradients(p.samples, begin, count, block, dot, weights, gradients.locations + 2 * at,
                      gradients.weights + at);
    }
  }
}

// The gradients of locations and weights alone: each row's are its own.
template <typename T, typename Gradient>
void backward_rows(const Problem& p, const Inputs<T>& inputs, const Gradients<T>& gradients, int64_t first,
                   int64_t last) {
  const Strides& from = inputs.value_strides;
  const int64_t samples = p.samples.count;
  Block<T> block;
  T dot[4][kBlock];
  for (int64_t j = first; j < last; ++j) {
    const int64_t query = j % p.queries, head = j / p.queries % p.heads, image = j / p.queries / p.heads;
    const int64_t i = (image * p.queries + query) * p.heads + head;
    const T* values = inputs.value + image * from.batch + head * from.head;
    if (query + kAhead < p.queries) {
      prefetch(inputs.locations + 2 * (i + kAhead * p.heads) * samples, 2 * samples);
      prefetch(inputs.weights + (i + kAhead * p.heads) * samples, samples);
      prefetch(gradients.output + (i + kAhead * p.heads) * p.dim, p.dim);
    }
    const Gradient gradient(gradients.output + i * p.dim, p.dim);
    for (int64_t begin = 0; begin < samples; begin += kBlock) {
      const int count = int(samples - begin < kBlock ? samples - begin : kBlock);
      const int64_t at = i * samples + begin;
      locate(p.samples, begin, count, inputs.locations + 2 * at, block);
      for (int s = 0; s < count; ++s) {
        typename Gradient::Part part[4] = {};
        for (int k = 0; k < 4; ++k)
          if (block.token[k][s] >= 0) part[k] = gradient.dot(values + block.token[k][s] * from.token);
        Gradient::finish(part, &dot[0][s], kBlock);
      }
      store_gradients(p.samples, begin, count, block, dot, inputs.weights + at, gradients.locations + 2 * at,
                      gradients.weights + at);
    }
  }
}

// The gradient of value alone, in a band of tokens of one level, image and head. Its cells get the same additions in
// the same order as in backward_head.
template <typename T, typename Gradient>
void backward_band(const Problem& p, const Inputs<T>& inputs, const Gradients<T>& gradients, const Band& band) {
  const Strides& to = gradients.value_strides;
  const int64_t samples = p.samples.count, points = p.points, of_level = band.level * points;
  T* value_gradients = gradients.value + band.image * to.batch + band.head * to.head;
  int32_t height[kBlock], width[kBlock], start[kBlock];
  for (int s = 0; s < kBlock; ++s) {
    height[s] = p.samples.height[of_level];
    width[s] = p.samples.width[of_level];
    start[s] = p.samples.start[of_level];
  }
  const Samples level{kBlock, height, width, start};
  Block<T> block;
  T locations[2 * kBlock], weights[kBlock];
  const T* output[kBlock];
  int64_t query = 0, point = 0;
  while (query < p.queries) {
    int count = 0;
    while (count < kBlock && query < p.queries) {  // the level's samples of query after query
      const int64_t i = (band.image * p.queries + query) * p.heads + band.head;
      const int64_t at = i * samples + of_level;
      const T *places = inputs.locations + 2 * at, *shares = inputs.weights + at;
      if (query + kAhead < p.queries) {
        prefetch(places + 2 * kAhead * p.heads * samples, 2 * points);
        prefetch(shares + kAhead * p.heads * samples, points);
        prefetch(gradients.output + (i + kAhead * p.heads) * p.dim, p.dim);
      }
      for (; count < kBlock && point < points; ++count, ++point) {
        locations[2 * count] = places[2 * point];
        locations[2 * count + 1] = places[2 * point + 1];
        weights[count] = shares[point];
        output[count] = gradients.output + i * p.dim;
      }
      if (point < points) break;
      point = 0;
      ++query;
    }
    locate(level, 0, count, locations, block);
    for (int s = 0; s < count;) {
      const T* const from = output[s];
      const Gradient gradient(from, p.dim);
      for (; s < count && output[s] == from; ++s)
        for (int k = 0; k < 4; ++k) {
          const int64_t token = block.token[k][s];
          if (token >= band.first && token < band.last)
            gradient.add(value_gradients + token * to.token, block.share[k][s] * weights[s]);
        }
    }
  }
}

template <typename T, typename Gradient>
void backward_bands(const Problem& p, const Inputs<T>& inputs, const Gradients<T>& gradients, const Band* first,
                    const Band* last) {
  for (; first < last; ++first) backward_band<T, Gradient>(p, inputs, gradients, *first);
}

template <typename T, typename Gradient>
void backward_heads(const Problem& p, const Inputs<T>& inputs, const Gradients<T>& gradients, int64_t first,
                    int64_t last) {
  for (int64_t i = first; i < last; ++i) backward_head<T, Gradient>(p, inputs, gradients, i / p.heads, i % p.heads);
}

}  // namespace

namespace D3Q_VARIANT {

void forward(const Problem& p, const Inputs<float>& inputs, float* output, int64_t first, int64_t last) {
  switch (p.dim) {
    case 8: return forward_rows<float, VectorSum<1>>(p, inputs, output, first, last);
    case 16: return forward_rows<float, VectorSum<2>>(p, inputs, output, first, last);
    case 32: return forward_rows<float, VectorSum<4>>(p, inputs, output, first, last);
    case 64: return forward_rows<float, VectorSum<8>>(p, inputs, output, first, last);
    default: return forward_rows<float, AnySum<float>>(p, inputs, output, first, last);
  }
}

void forward(const Problem& p, const Inputs<double>& inputs, double* output, int64_t first, int64_t last) {
  forward_rows<double, AnySum<double>>(p, inputs, output, first, last);
}

// A function of the kernels above, for the width of a row.
#define D3Q_FOR_EVERY_WIDTH(name, function, ...)                                                              \
  void name(const Problem& p, const Inputs<float>& inputs, const Gradients<float>& gradients, __VA_ARGS__) {  \
    switch (p.dim) {                                                                                          \
      case 8: return function<float, VectorGradient<1>>(p, inputs, gradients, first, last);                   \
      case 16: return function<float, VectorGradient<2>>(p, inputs, gradients, first, last);                  \
      case 32: return function<float, VectorGradient<4>>(p, inputs, gradients, first, last);                  \
      case 64: return function<float, VectorGradient<8>>(p, inputs, gradients, first, last);                  \
      default: return function<float, AnyGradient<float>>(p, inputs, gradients, first, last);                 \
    }                                                                                                         \
  }                                                                                                           \
  void name(const Problem& p, const Inputs<double>& inputs, const Gradients<double>& gradients, __VA_ARGS__) { \
    function<double, AnyGradient<double>>(p, inputs, gradients, first, last);                                 \
  }

D3Q_FOR_EVERY_WIDTH(backward, backward_heads, int64_t first, int64_t last)
D3Q_FOR_EVERY_WIDTH(backward_samples, backward_rows, int64_t first, int64_t last)
D3Q_FOR_EVERY_WIDTH(backward_value, backward_bands, const Band* first, const Band* last)

}  // namespace D3Q_VARIANT
}  // namespace d3q
