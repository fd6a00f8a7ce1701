// The contract of the plane convolution (plane.cuh), which runs on Hopper only: out = activation(bn(conv(x, weight)) [+
// residual]) in float16 or bfloat16, accumulated and normalised in float32, rounded once.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace resnet_fused::cuda {

// The kernel's list of products, in device memory aligned to 16 bytes: conv_plane_table of the same convolution.
struct PlaneTable {
  const int* data;
  int places;  // output pixels of a tile: 4 or 2
};

// gradient: the op computes the gradient of a convolution's input. x is then the gradient of the output [n, p, q, k],
// out is the gradient of the input [n, h, w, c], and the weight is [c, r, s, k]. cluster: 2 where two blocks load their
// weights together, else 1.
void conv_plane(DType dtype, const void* x, const void* weight, Epilogue epilogue, void* out, Convolution conv,
                bool gradient, PlaneTable table, int cluster, void* stream);
// The table depends on every number of `conv` except the batch and the channels.
std::vector<int> conv_plane_table(Convolution conv, bool gradient, int places);
int64_t conv_plane_groups(Convolution conv, bool gradient, int places);
// Why the current device cannot run conv_plane for this convolution, or "".
std::string conv_plane_refusal(DType dtype, Convolution conv, bool gradient);

}  // namespace resnet_fused::cuda
