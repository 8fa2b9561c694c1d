// Multi-scale deformable attention on a CPU. Compiled once for any processor and once for AVX2 and FMA, with
// D3Q_VARIANT as the namespace. No header here defines an inline function and all helpers are local to the file:
// the linker could otherwise take the AVX2 copy of a shared one for both.
#include "cpu_kernels.h"

namespace d3q {
namespace {

inline float floor_of(float x) { return __builtin_floorf(x); }
inline double floor_of(double x) { return __builtin_floor(x); }

// The four cells around a sample: upper left, upper right, lower left, lower right.
template <typename T>
struct Footprint {
  bool valid[4];
  int64_t token[4];
  T share[4];  // of each cell, by bilinear interpolation
  T x, y;      // distance from the upper left cell
};

// False where no cell is in the map, which is also where a location is not a number.
template <typename T>
inline __attribute__((always_inline)) bool locate(const T* location, int64_t height, int64_t width, Footprint<T>& cells) {
  const T x = location[0] * T(width) - T(0.5), y = location[1] * T(height) - T(0.5);
  if (!(x > T(-1) && y > T(-1) && x < T(width) && y < T(height))) return false;
  const T floor_x = floor_of(x), floor_y = floor_of(y);
  const int64_t column = int64_t(floor_x), row = int64_t(floor_y);
  cells.x = x - floor_x;
  cells.y = y - floor_y;
  const bool left = column >= 0, right = column + 1 < width, upper = row >= 0, lower = row + 1 < height;
  cells.valid[0] = upper && left;
  cells.valid[1] = upper && right;
  cells.valid[2] = lower && left;
  cells.valid[3] = lower && right;
  const int64_t token = row * width + column;
  cells.token[0] = token;
  cells.token[1] = token + 1;
  cells.token[2] = token + width;
  cells.token[3] = token + width + 1;
  cells.share[0] = (1 - cells.y) * (1 - cells.x);
  cells.share[1] = (1 - cells.y) * cells.x;
  cells.share[2] = cells.y * (1 - cells.x);
  cells.share[3] = cells.y * cells.x;
  return true;
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
  const T* __restrict__ gradient;
  int64_t dim;
  AnyGradient(const T* gradient, int64_t dim) : gradient(gradient), dim(dim) {}
  // Adds weight * gradient to row_gradient; returns <gradient, row>.
  T spread(const T* __restrict__ row, T* __restrict__ row_gradient, T weight) const {
    T partial[8] = {}, sum = 0;
    int64_t c = 0;
    for (; c + 8 <= dim; c += 8)
      for (int k = 0; k < 8; ++k) partial[k] += gradient[c + k] * row[c + k];
    for (; c < dim; ++c) sum += gradient[c] * row[c];
    for (int k = 0; k < 8; ++k) sum += partial[k];
    for (c = 0; c < dim; ++c) row_gradient[c] += weight * gradient[c];
    return sum;
  }
};

typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void save(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }

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
  Vector gradient[N];
  VectorGradient(const float* from, int64_t) {
    for (int k = 0; k < N; ++k) gradient[k] = load(from + 8 * k);
  }
  inline __attribute__((always_inline)) float spread(const float* row, float* row_gradient, float weight) const {
    Vector sum = {};
    for (int k = 0; k < N; ++k) {
      sum += gradient[k] * load(row + 8 * k);
      save(row_gradient + 8 * k, load(row_gradient + 8 * k) + gradient[k] * weight);
    }
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
  }
};

template <typename T, typename Sum>
void forward_rows(const Problem& p, const Inputs<T>& inputs, T* output, int64_t first, int64_t last) {
  const Strides& strides = inputs.value_strides;
  const int64_t samples = p.levels * p.points;
  Footprint<T> cells;
  for (int64_t i = first; i < last; ++i) {
    const int64_t head = i % p.heads, image = i / p.heads / p.queries;
    const T* location = inputs.locations + i * samples * 2;
    const T* weight = inputs.weights + i * samples;
    const T* values = inputs.value + image * strides.batch + head * strides.head;
    Sum sum(output + i * p.dim, p.dim);
    for (int64_t level = 0; level < p.levels; ++level) {
      const int64_t height = p.shapes[2 * level], width = p.shapes[2 * level + 1];
      const T* map = values + p.starts[level] * strides.token;
      for (int64_t point = 0; point < p.points; ++point, location += 2, ++weight) {
        if (!locate(location, height, width, cells)) continue;
        for (int k = 0; k < 4; ++k)
          if (cells.valid[k]) sum.add(map + cells.token[k] * strides.token, cells.share[k] * *weight);
      }
    }
    sum.store();
  }
}

template <typename T>
inline __attribute__((always_inline)) void store_gradients(const Footprint<T>& cells, const T dot[4], int64_t height,
                                                           int64_t width, T weight, T* location, T* weight_gradient) {
  const T left = 1 - cells.x, upper = 1 - cells.y;
  *weight_gradient = upper * (left * dot[0] + cells.x * dot[1]) + cells.y * (left * dot[2] + cells.x * dot[3]);
  location[0] = T(width) * weight * (upper * (dot[1] - dot[0]) + cells.y * (dot[3] - dot[2]));
  location[1] = T(height) * weight * (left * (dot[2] - dot[0]) + cells.x * (dot[3] - dot[1]));
}

template <typename T, typename Gradient>
void backward_head(const Problem& p, const Inputs<T>& inputs, const Gradients<T>& gradients, int64_t image,
                   int64_t head) {
  const Strides &from = inputs.value_strides, &to = gradients.value_strides;
  const int64_t samples = p.levels * p.points;
  const T* values = inputs.value + image * from.batch + head * from.head;
  T* value_gradients = gradients.value + image * to.batch + head * to.head;
  Footprint<T> cells;
  for (int64_t query = 0; query < p.queries; ++query) {
    const int64_t i = (image * p.queries + query) * p.heads + head;
    const Gradient gradient(gradients.output + i * p.dim, p.dim);
    int64_t sample = i * samples;
    for (int64_t level = 0; level < p.levels; ++level) {
      const int64_t height = p.shapes[2 * level], width = p.shapes[2 * level + 1], start = p.starts[level];
      for (int64_t point = 0; point < p.points; ++point, ++sample) {
        T* location_gradient = gradients.locations + 2 * sample;
        if (!locate(inputs.locations + 2 * sample, height, width, cells)) {
          location_gradient[0] = location_gradient[1] = gradients.weights[sample] = 0;
          continue;
        }
        const T weight = inputs.weights[sample];
        T dot[4] = {0, 0, 0, 0};
        for (int k = 0; k < 4; ++k) {
          if (!cells.valid[k]) continue;
          const int64_t token = start + cells.token[k];
          dot[k] = gradient.spread(values + token * from.token, value_gradients + token * to.token,
                                   cells.share[k] * weight);
        }
        store_gradients(cells, dot, height, width, weight, location_gradient, gradients.weights + sample);
      }
    }
  }
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

void backward(const Problem& p, const Inputs<float>& inputs, const Gradients<float>& gradients, int64_t first,
              int64_t last) {
  switch (p.dim) {
    case 8: return backward_heads<float, VectorGradient<1>>(p, inputs, gradients, first, last);
    case 16: return backward_heads<float, VectorGradient<2>>(p, inputs, gradients, first, last);
    case 32: return backward_heads<float, VectorGradient<4>>(p, inputs, gradients, first, last);
    case 64: return backward_heads<float, VectorGradient<8>>(p, inputs, gradients, first, last);
    default: return backward_heads<float, AnyGradient<float>>(p, inputs, gradients, first, last);
  }
}

void backward(const Problem& p, const Inputs<double>& inputs, const Gradients<double>& gradients, int64_t first,
              int64_t last) {
  backward_heads<double, AnyGradient<double>>(p, inputs, gradients, first, last);
}

}  // namespace D3Q_VARIANT
}  // namespace d3q
