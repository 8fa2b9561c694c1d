// What bindings.cpp calls. cpu_kernels.cpp is compiled once per variant, each into a namespace of its own.
#pragma once
#include <cstdint>

namespace d3q {

// The L*P samples of a query and head: size and first token of the level of each.
struct Samples {
  int64_t count;
  const int32_t *height, *width, *start;
};

struct Problem {
  int64_t batch, heads, dim, queries, points;
  Samples samples;  // levels * points
};

// Tokens [first, last) of a level, in one image and head.
struct Band {
  int64_t image, head, level, first, last;
};

// Distances in elements between images, tokens and heads of a (B, S, M, D) tensor; channels are adjacent.
struct Strides {
  int64_t batch, token, head;
};

template <typename T>
struct Inputs {
  const T* value;
  Strides value_strides;
  const T* locations;  // (B, Q, M, L, P, 2)
  const T* weights;    // (B, Q, M, L, P)
};

template <typename T>
struct Gradients {
  const T* output;  // (B, Q, M*D)
  T* value;         // zero at first
  Strides value_strides;
  T* locations;
  T* weights;
};

#define D3Q_DECLARE(variant, T)                                                                                   \
  namespace variant {                                                                                             \
  /* Output rows [first, last) of the B*M*Q. */                                                                   \
  void forward(const Problem& problem, const Inputs<T>& inputs, T* output, int64_t first, int64_t last);          \
  /* Owns the gradient of (image, head) [first, last) of the B*M: no other call writes there. */                  \
  void backward(const Problem& problem, const Inputs<T>& inputs, const Gradients<T>& gradients, int64_t first,    \
                int64_t last);                                                                                    \
  /* The same in two parts, for more threads than B*M: of locations and weights, rows [first, last) of the B*M*Q, */ \
  /* and of value, in bands that do not overlap. */                                                               \
  void backward_samples(const Problem& problem, const Inputs<T>& inputs, const Gradients<T>& gradients,           \
                        int64_t first, int64_t last);                                                             \
  void backward_value(const Problem& problem, const Inputs<T>& inputs, const Gradients<T>& gradients,             \
                      const Band* first, const Band* last);                                                       \
  }
D3Q_DECLARE(baseline, float)
D3Q_DECLARE(baseline, double)
#ifdef D3Q_HAS_AVX2
D3Q_DECLARE(avx2, float)
D3Q_DECLARE(avx2, double)
#endif
#undef D3Q_DECLARE

}  // namespace d3q
