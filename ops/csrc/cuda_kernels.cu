// Compiled once per dtype, D3Q_DTYPE, so that a build uses several cores.
#include "cuda_launch.cuh"

namespace d3q::cuda {

template const char* start<Dtype::D3Q_DTYPE>(const Problem&, const ForwardTensors&, int, void*);
template const char* start<Dtype::D3Q_DTYPE>(const Problem&, const BackwardTensors&, int, void*);

}  // namespace d3q::cuda
