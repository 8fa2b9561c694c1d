// The CPU kernels without torch, for compilers and processors that torch's library is not here for: against the
// definition, in double. Compiled together with cpu_kernels.cpp, -DD3Q_VARIANT=baseline.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu_kernels.h"

namespace {

struct Level {
  int height, width;
};
const std::vector<Level> kLevels{{9, 13}, {5, 7}, {1, 3}, {1, 1}};
constexpr int64_t kBatch = 2, kHeads = 3, kQueries = 17, kPoints = 5;

double next_random() {  // in [0, 1), the same everywhere
  static uint64_t state = 1;
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return double(state >> 40) / double(1 << 24);
}

template <typename T>
std::vector<T> random_numbers(int64_t count, double from, double to) {
  std::vector<T> numbers;
  for (int64_t i = 0; i < count; ++i) numbers.push_back(T(from + (to - from) * next_random()));
  return numbers;
}

template <typename T>
void require_close(const char* what, int64_t dim, const std::vector<T>& found, const std::vector<double>& expected) {
  double largest = 0, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::fmax(largest, std::fabs(expected[i]));
    const double difference = std::fabs(double(found[i]) - expected[i]);
    if (!(difference <= error)) error = difference;  // also where it is not a number
  }
  if (error <= (sizeof(T) == 4 ? 1e-5 : 1e-12) * largest) return;
  std::printf("%s, %d wide, %d bytes: error %g of %g\n", what, int(dim), int(sizeof(T)), error, largest);
  std::exit(1);
}

template <typename T>
void require_same(const char* what, const std::vector<T>& one, const std::vector<T>& other) {
  if (std::memcmp(one.data(), other.data(), one.size() * sizeof(T)) == 0) return;
  std::printf("%s: two passes differ from one\n", what);
  std::exit(1);
}

template <typename T>
void run(int64_t dim) {
  std::vector<int32_t> height, width, start;
  int64_t tokens = 0;
  for (const Level& level : kLevels) {
    height.insert(height.end(), kPoints, level.height);
    width.insert(width.end(), kPoints, level.width);
    start.insert(start.end(), kPoints, int32_t(tokens));
    tokens += level.height * level.width;
  }
  const int64_t samples = int64_t(start.size()), rows = kBatch * kQueries * kHeads;
  const auto value = random_numbers<T>(kBatch * tokens * kHeads * dim, -1, 1);
  const auto locations = random_numbers<T>(rows * samples * 2, -0.2, 1.2);
  const auto weights = random_numbers<T>(rows * samples, 0, 1);
  const auto output_gradient = random_numbers<T>(rows * dim, -1, 1);

  // By the definition.
  std::vector<double> output(rows * dim), to_value(value.size()), to_locations(locations.size()),
      to_weights(weights.size());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t at = row * samples + s, head = row % kHeads, image = row / kHeads / kQueries;
      // As the kernels do, in T: rounding decides on the cell.
      const T x = locations[2 * at] * T(width[s]) - T(0.5), y = locations[2 * at + 1] * T(height[s]) - T(0.5);
      const double column = std::floor(double(x)), line = std::floor(double(y));
      const double fraction_x = double(x) - column, fraction_y = double(y) - line;
      for (int k = 0; k < 4; ++k) {
        const double cx = column + (k & 1), cy = line + (k >> 1);
        if (cx < 0 || cy < 0 || cx >= width[s] || cy >= height[s]) continue;
        const double by_x = k & 1 ? fraction_x : 1 - fraction_x, by_y = k >> 1 ? fraction_y : 1 - fraction_y;
        const int64_t token = start[s] + int64_t(cy) * width[s] + int64_t(cx);
        const int64_t cell = ((image * tokens + token) * kHeads + head) * dim;
        double dot = 0;
        for (int64_t c = 0; c < dim; ++c) {
          output[row * dim + c] += by_x * by_y * weights[at] * value[cell + c];
          to_value[cell + c] += by_x * by_y * weights[at] * output_gradient[row * dim + c];
          dot += double(output_gradient[row * dim + c]) * value[cell + c];
        }
        to_weights[at] += by_x * by_y * dot;
        to_locations[2 * at] += (k & 1 ? 1 : -1) * by_y * dot * weights[at] * width[s];
        to_locations[2 * at + 1] += (k >> 1 ? 1 : -1) * by_x * dot * weights[at] * height[s];
      }
    }

  const d3q::Problem problem{kBatch, kHeads, dim, kQueries, kPoints,
                             {samples, height.data(), width.data(), start.data()}};
  const d3q::Strides strides{tokens * kHeads * dim, kHeads * dim, dim};
  const d3q::Inputs<T> inputs{value.data(), strides, locations.data(), weights.data()};
  std::vector<T> found(rows * dim), one_value(value.size()), one_locations(locations.size()), one_weights(weights.size());
  d3q::baseline::forward(problem, inputs, found.data(), 0, rows);
  require_close("output", dim, found, output);
  const d3q::Gradients<T> gradients{output_gradient.data(), one_value.data(), strides, one_locations.data(),
                                    one_weights.data()};
  d3q::baseline::backward(problem, inputs, gradients, 0, kBatch * kHeads);
  require_close("gradient of value", dim, one_value, to_value);
  require_close("gradient of locations", dim, one_locations, to_locations);
  require_close("gradient of weights", dim, one_weights, to_weights);

  // Two passes, cut anyhow and in another order.
  std::vector<T> two_value(value.size()), two_locations(locations.size()), two_weights(weights.size());
  const d3q::Gradients<T> others{output_gradient.data(), two_value.data(), strides, two_locations.data(),
                                 two_weights.data()};
  d3q::baseline::backward_samples(problem, inputs, others, 7, rows);
  d3q::baseline::backward_samples(problem, inputs, others, 0, 7);
  std::vector<d3q::Band> bands;
  for (int64_t i = kBatch * kHeads * int64_t(kLevels.size()) - 1; i >= 0; --i) {
    const int64_t level = i % int64_t(kLevels.size()), head = i / int64_t(kLevels.size()) % kHeads;
    const int64_t image = i / int64_t(kLevels.size()) / kHeads, first = start[level * kPoints];
    const int64_t last = first + kLevels[level].height * kLevels[level].width, cut = (2 * first + last) / 3;
    bands.push_back({image, head, level, cut, last});
    bands.push_back({image, head, level, first, cut});
  }
  d3q::baseline::backward_value(problem, inputs, others, bands.data(), bands.data() + bands.size());
  require_same("gradient of value", one_value, two_value);
  require_same("gradient of locations", one_locations, two_locations);
  require_same("gradient of weights", one_weights, two_weights);
}

}  // namespace

int main() {
  for (const int64_t dim : {1, 8, 11, 16, 24, 32, 64}) {
    run<float>(dim);
    run<double>(dim);
  }
  std::puts("agrees");
}
