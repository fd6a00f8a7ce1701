// 3x3, stride 1 convolution of float32 or bfloat16 NHWC activations by Winograd's F(m x m, 3x3), m = 2 or 4:
//   out = activation(conv(x, weight) * scale + shift [+ residual])
// The output transform does everything that follows a convolution in a folded ResNet. The convolution takes 4 (m = 4)
// or 2.25 (m = 2) times fewer multiplications than the direct sum. docs/design/winograd.md has the method and the
// measurements.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/base/folded.h"
#include "cpu/base/team.h"
#include "cpu/winograd/live_filters.h"

namespace resnet_fused::cpu {

// A 3x3 filter with stride 1, one group, and a padding of 0 to 2 on both axes.
struct WinogradShape : Convolution {
  int m;        // 2 or 4: outputs per tile and axis
  DType dtype;  // of x and out: f32 or bf16
  int64_t padding() const { return pad_h; }
  // Terms of a sum: input channels in float32, pairs of them in bfloat16.
  int64_t depth() const { return dtype == DType::bf16 ? (c + 1) / 2 : c; }
};

// When the weights are transformed. points: at packing, in float64, then rounded to the dtype of x. taps: in every run,
// in float32, and for a float32 x alone. Packed taps take 4 (m = 4) or 1.8 (m = 2) times less memory than points, which
// is faster where few tiles share many weights. In bfloat16 the transformed pixels are rounded too. All sums are
// float32.
enum class WinogradWeights { points, taps };

// The tiles along one axis. The first `whole` tiles have m outputs. The others, which only F(4, 3) has, have m - 1.
struct WinogradAxis {
  int m;
  int64_t whole, count;
  int64_t begin(int64_t tile) const { return tile * m - (tile > whole ? tile - whole : 0); }
  int size(int64_t tile) const { return tile < whole ? m : m - 1; }
};

// How one convolution is divided: a pure function of its arguments (winograd/plan.cpp). No number of a plan changes a
// bit of the result, because every output sums over its input channels in the same order.
struct WinogradPlan {
  WinogradShape shape;
  WinogradWeights weights;
  WinogradAxis rows, columns;
  int64_t tiles;  // of the whole batch
  int slots;      // threads that run it, each with memory of its own
  // true: slots share the transformed input and split the output channels. false: they split the tiles
  bool split_panels;
  int most;       // tiles per micro-kernel call
  int64_t block;  // tiles transformed, multiplied and transformed back at a time
  int64_t group;  // output panels (32 channels) whose products are kept until the output transform
  int64_t chunk;  // terms of a sum whose weights are transformed at a time
};

WinogradPlan winograd_plan(const WinogradShape& shape, WinogradWeights weights, int threads);

// Floats of the packed weights, which depend on k, c, m and dtype of the shape alone, and floats of a run's workspace.
int64_t winograd_packed_size(const WinogradShape& shape, WinogradWeights weights);
int64_t winograd_workspace_size(const WinogradPlan& plan);

// weight: [k, c, 3, 3] contiguous; scale: [k] or nullptr, multiplied in float64. packed: see isa/kernels.h.
void winograd_pack(const WinogradShape& shape, WinogradWeights weights, const float* weight, const float* scale,
                   float* packed);

// Adds the loops of a convolution. Pointers are kept, and the rest is copied. x, residual and out have the shape's
// dtype. out must not be x. scale: [k], or nullptr for 1. The activation is none or ReLU. workspace: aligned to 64
// bytes. The loops set `finite`, which may be nullptr, to false where a value was not finite before the activation. A
// NaN or infinity in x reaches the 3x3 outputs around it and may reach all outputs of the tiles that read it. Finite
// values near the largest float may overflow.
void winograd_loops(const WinogradPlan& plan, const void* x, const float* packed, const float* scale,
                    const FoldedEpilogue& epilogue, void* out, float* workspace, std::atomic<bool>* finite,
                    Loops& loops);

// The convolution in float32 for a network whose weights may change at any time: every call packs the weights, as
// points. The norm of the epilogue has float32 running statistics. Returns whether all values were finite before the
// activation.
WinogradPlan winograd_live_plan(const WinogradShape& shape, int threads);
int64_t winograd_live_workspace_size(const WinogradPlan& plan);
bool winograd_run_live(const WinogradPlan& plan, const float* x, const WinogradFilters& filters,
                       const Epilogue& epilogue, float* out, float* workspace);

// The same convolution with nothing after it, for training. For the gradient of the input, x is the gradient of the
// output, and `filters` reads the weight with its channels exchanged and its taps from the last to the first.
bool winograd_convolve(const WinogradPlan& plan, const float* x, const WinogradFilters& filters, float* out,
                       float* workspace);

}  // namespace resnet_fused::cpu
