// The contract of the plane convolution (plane.cuh), which only Hopper runs: out = activation(bn(conv(x, weight))
// [+ residual]) in float16 or bfloat16, accumulated and normalised in float32, rounded once.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace resnet_fused::cuda {

// What the kernel works off, in device memory aligned to 16 bytes: conv_plane_table of the same convolution.
struct PlaneTable {
  const int* data;
  int places;  // output pixels of a tile: 4 or 2
};

// gradient: of the convolution's input. Then x is the gradient of its output [n, p, q, k], out that of its input
// [n, h, w, c], and the weight is [c, r, s, k]. cluster: 2 blocks that load their weights together, or 1.
void conv_plane(DType dtype, const void* x, const void* weight, Epilogue epilogue, void* out, Convolution conv,
                bool gradient, PlaneTable table, int cluster, void* stream);
// Depends on everything in `conv` but the batch and the channels.
std::vector<int> conv_plane_table(Convolution conv, bool gradient, int places);
int64_t conv_plane_groups(Convolution conv, bool gradient, int places);
// Why the current device does not run a convolution of this shape by conv_plane, or "".
std::string conv_plane_refusal(DType dtype, Convolution conv, bool gradient);

}  // namespace resnet_fused::cuda
