// 3x3, stride 1 convolution of float32 or bfloat16 NHWC activations by Winograd's F(m x m, 3x3), m = 2 or 4, with
// everything that follows a convolution in a folded ResNet in its output transform: out = [relu](conv(x, weight *
// scale) + shift
// [+ residual]). Four (m = 4) or 2.25 (m = 2) times fewer multiplications than the direct sum. See docs/winograd.md.
#pragma once

#include <cstdint>

#include "cpu/winograd/live_filters.h"

namespace resnet_fused::cpu {

struct WinogradShape {
  int64_t n, h, w, c, k;  // x: [n, h, w, c]; out: [n, h + 2 * padding - 2, w + 2 * padding - 2, k]
  int m;                  // 2 or 4: outputs per tile and axis
  int padding;            // 0 or 1
  int64_t out_h() const { return h + 2 * padding - 2; }
  int64_t out_w() const { return w + 2 * padding - 2; }
};

// points: transformed when they are packed, in float64. taps: kept as they are and transformed by every run, in
// float32; 4 (m = 4) or 1.8 (m = 2) times less memory to read, which pays where few tiles share many weights.
// half: points rounded to bfloat16, for bfloat16 activations; so are the transformed pixels, and all sums are float32.
enum class WinogradWeights { points, taps, half };

// The tiles along one axis: the first `whole` have m outputs, the others, of F(4, 3) alone, one less.
struct WinogradAxis {
  int m;
  int64_t whole, count;
  int64_t begin(int64_t tile) const { return tile * m - (tile > whole ? tile - whole : 0); }
  int size(int64_t tile) const { return tile < whole ? m : m - 1; }
};

// How one convolution is cut up; a pure function of its arguments (winograd_plan.cpp). No choice here changes a bit of
// the result: every output sums over its input channels in the same order.
struct WinogradPlan {
  WinogradShape shape;
  WinogradWeights weights;
  int64_t depth() const { return weights == WinogradWeights::half ? (shape.c + 1) / 2 : shape.c; }  // of a sum: pairs
  WinogradAxis rows, columns;
  int64_t tiles;      // of the whole batch
  int tasks;          // pieces that run in parallel
  bool split_panels;  // tasks share the transformed input and split the output channels, not the tiles
  int most;           // tiles per micro-kernel call
  int64_t block;      // tiles transformed, multiplied and transformed back at a time
  int64_t group;      // output panels (32 channels) whose products are kept until they are transformed
  int64_t chunk;      // of depth(): whose weights are transformed at a time
};

WinogradPlan winograd_plan(const WinogradShape& shape, WinogradWeights weights, int threads);

// Floats in the packed weights (they do not depend on the plan) and in the workspace of a run.
int64_t winograd_packed_size(int64_t k, int64_t c, int m, WinogradWeights weights);
int64_t winograd_workspace_size(const WinogradPlan& plan);

// weight: [k, c, 3, 3] contiguous; scale: [k] or nullptr, multiplied in float64. packed: see winograd_kernels.h.
void winograd_pack(const float* weight, const float* scale, int64_t k, int64_t c, int m, WinogradWeights weights,
                   float* packed);

// out = [relu](conv * scale + shift [+ residual]). x, residual, out: float32, or bfloat16 with weights of that kind.
// scale: [k], or nullptr for 1; shift: [k]; residual: like out, or nullptr; out may be residual but not x. workspace:
// aligned to 64 bytes. Returns whether all values were finite before the ReLU. A NaN or infinity in x reaches the 3x3
// outputs around it and may reach all outputs of the tiles that read it; a finite value near the largest one may
// overflow.
bool winograd_run(const WinogradPlan& plan, const void* x, const float* packed, const float* scale, const float* shift,
                  const void* residual, void* out, bool relu, float* workspace);

// Batch norm with running statistics; weight and bias may be nullptr (1 and 0).
struct WinogradNorm {
  const float *mean, *var, *weight, *bias;
  double eps;
};

// The same for a network whose weights may change at any time: they are packed, in float32, by every call,
// as points.
WinogradPlan winograd_live_plan(const WinogradShape& shape, int threads);
int64_t winograd_live_workspace_size(const WinogradPlan& plan);
bool winograd_run_live(const WinogradPlan& plan, const float* x, const WinogradFilters& filters,
                       const WinogradNorm& norm, const float* residual, float* out, bool relu, float* workspace);

}  // namespace resnet_fused::cpu
