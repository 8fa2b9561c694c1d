// What bindings.cpp calls. cpu_kernels.cpp is compiled once per variant, each into a namespace of its own.
#pragma once
#include <cstdint>

namespace d3q {

struct Problem {
  int64_t batch, tokens, heads, dim, queries, levels, points;
  const int64_t* shapes;  // (height, width) of each level
  const int64_t* starts;  // first token of each level
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
  /* Output rows [first, last) of the B*Q*M. */                                                                   \
  void forward(const Problem& problem, const Inputs<T>& inputs, T* output, int64_t first, int64_t last);          \
  /* Owns the gradient of (image, head) [first, last) of the B*M: no other call writes there. */                  \
  void backward(const Problem& problem, const Inputs<T>& inputs, const Gradients<T>& gradients, int64_t first,    \
                int64_t last);                                                                                    \
  }
D3Q_DECLARE(baseline, float)
D3Q_DECLARE(baseline, double)
#ifdef D3Q_HAS_AVX2
D3Q_DECLARE(avx2, float)
D3Q_DECLARE(avx2, double)
#endif
#undef D3Q_DECLARE

}  // namespace d3q
