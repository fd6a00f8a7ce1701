// Winograd for a network whose weights may change between two calls: nothing derived from them outlives a call.
#include <cmath>

#include "parallel.h"
#include "winograd.h"
#include "winograd_kernels.h"

namespace resnet_fused::cpu {
namespace {

constexpr int64_t kChunk = 32;  // input channels whose taps are gathered at a time: 36 KiB

int64_t panels_of(const WinogradShape& shape) { return (shape.k + kWinogradPanel - 1) / kWinogradPanel; }
int64_t padded(int64_t floats) { return (floats + kWinogradLine - 1) / kWinogradLine * kWinogradLine; }

// [c][9][32] of one panel, from filters in any layout.
void gather_taps(const WinogradFilters& filters, int64_t k0, int64_t lanes, int64_t c, int64_t channels, float* taps) {
  const float* first = filters.data + k0 * filters.k_stride + c * filters.c_stride;
  if (lanes == kWinogradPanel) {
    winograd_kernels().gather({first, filters.k_stride, filters.c_stride, filters.tap_stride}, channels, taps);
    return;
  }
  for (int64_t i = 0; i < channels * 9 * kWinogradPanel; ++i) taps[i] = 0;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const float* from = first + lane * filters.k_stride;
    for (int64_t i = 0; i < channels; ++i) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        taps[(i * 9 + tap) * kWinogradPanel + lane] = from[i * filters.c_stride + tap * filters.tap_stride];
      }
    }
  }
}

void pack(const WinogradPlan& plan, const WinogradFilters& filters, float* packed) {
  const WinogradShape& shape = plan.shape;
  const int64_t panel_size = winograd_packed_size(kWinogradPanel, shape.c, shape.m, plan.weights);
  const int64_t chunks = (shape.c + kChunk - 1) / kChunk;
  const auto expand = shape.m == 2 ? winograd_kernels().expand2 : winograd_kernels().expand4;
  parallel_for(panels_of(shape) * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / chunks, k0 = panel * kWinogradPanel, c = i % chunks * kChunk;
      const int64_t lanes = shape.k - k0 < kWinogradPanel ? shape.k - k0 : kWinogradPanel;
      const int64_t channels = shape.c - c < kChunk ? shape.c - c : kChunk;
      float* to = packed + panel * panel_size;
      if (plan.weights == WinogradWeights::taps) {
        gather_taps(filters, k0, lanes, c, channels, to + c * 9 * kWinogradPanel);
      } else {
        alignas(64) float taps[kChunk * 9 * kWinogradPanel];
        gather_taps(filters, k0, lanes, c, channels, taps);
        expand(taps, channels, to + c * kWinogradPanel, shape.c * kWinogradPanel);
      }
    }
  });
}

}  // namespace

WinogradPlan winograd_live_plan(const WinogradShape& shape, int threads) {
  return winograd_plan(shape, WinogradWeights::points, threads);
}

int64_t winograd_live_workspace_size(const WinogradPlan& plan) {
  const WinogradShape& shape = plan.shape;
  return padded(winograd_packed_size(shape.k, shape.c, shape.m, plan.weights)) + 2 * padded(shape.k) +
         winograd_workspace_size(plan);
}

bool winograd_run_live(const WinogradPlan& plan, const float* x, const WinogradFilters& filters,
                       const WinogradNorm& norm, const float* residual, float* out, bool relu, float* workspace) {
  const WinogradShape& shape = plan.shape;
  float* packed = workspace;
  float* scale = packed + padded(winograd_packed_size(shape.k, shape.c, shape.m, plan.weights));
  float* shift = scale + padded(shape.k);
  for (int64_t k = 0; k < shape.k; ++k) {
    const double factor = (norm.weight ? norm.weight[k] : 1.0) / std::sqrt(norm.var[k] + norm.eps);
    scale[k] = static_cast<float>(factor);
    shift[k] = static_cast<float>((norm.bias ? norm.bias[k] : 0.0) - norm.mean[k] * factor);
  }
  pack(plan, filters, packed);
  return winograd_run(plan, x, packed, scale, shift, residual, out, relu, shift + padded(shape.k));
}

}  // namespace resnet_fused::cpu
