// The gradient of a 3x3 weight by Winograd's F(3x3, 2x2), for float32 NHWC activations:
//   grad_weight[k, c, r, s] = sum over images and pixels of grad[k, y, x] * x[c, y + r - padding, x + s - padding]
// Every tile of 2x2 outputs of the convolution gives 16 products a pair of channels instead of 36. The products of all
// tiles are summed point by point, and the sums are transformed to 3x3 once. docs/design/winograd.md has measurements.
#pragma once

#include <cstdint>

#include "cpu/base/folded.h"

namespace resnet_fused::cpu {

// A gradient [k, c, 3, 3] in any layout. Strides are in floats.
struct WeightGradient {
  float* data;
  int64_t k_stride, c_stride, tap_stride;
};

// How the work is divided. `parts` and `block` follow from the shape alone, because they decide the order of sums. The
// other numbers also depend on the threads, and change no bit.
struct WeightGradientPlan {
  Convolution shape;
  int64_t rows, columns, tiles;  // tiles of an image along each axis, and of the batch
  int64_t parts;                 // of the tiles, each with sums of its own; 1: threads divide the channels
  int64_t block;                 // tiles whose products are summed before the next tiles are transformed
  int slots;                     // threads
  int64_t lines, panels;         // groups of 16 input channels that one piece of work multiplies with 32 outputs each
};

WeightGradientPlan winograd_weight_gradient_plan(const Convolution& shape, int threads);

// Floats of a run's workspace.
int64_t winograd_weight_gradient_workspace_size(const WeightGradientPlan& plan);

// grad: [n, p, q, k]; x: [n, h, w, c]. workspace: aligned to 64 bytes. Returns whether all values were finite: a NaN or
// an infinity in grad or x reaches more taps than in the direct sum, and the result must not be used.
bool winograd_weight_gradient(const WeightGradientPlan& plan, const float* grad, const float* x,
                              const WeightGradient& to, float* workspace);

}  // namespace resnet_fused::cpu
