// Winograd for a network whose weights may change between two calls: no value derived from the weights outlives a call.
#include <algorithm>
#include <cmath>

#include "cpu/base/parallel.h"
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/winograd.h"

namespace resnet_fused::cpu {
namespace {

constexpr int64_t kChunk = 32;  // input channels whose taps are copied at a time: 36 KiB

int64_t panels_of(const WinogradShape& shape) { return (shape.k + kWinogradPanel - 1) / kWinogradPanel; }
int64_t padded(int64_t floats) { return (floats + kWinogradLine - 1) / kWinogradLine * kWinogradLine; }

Loop pack(const WinogradShape& shape, const WinogradFilters& filters, float* packed, int slots) {
  const int64_t panel_size = winograd_panel_size(shape, WinogradWeights::points);
  const int64_t chunks = (shape.c + kChunk - 1) / kChunk;
  return ranges(panels_of(shape) * chunks, slots, [=](int64_t begin, int64_t end) {
    const WinogradKernels& kernels = winograd_kernels(shape.dtype);
    const auto expand = shape.m == 2 ? kernels.expand2 : kernels.expand4;
    alignas(64) float taps[kChunk * 9 * kWinogradPanel];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / chunks, k = panel * kWinogradPanel, c = i % chunks * kChunk;
      const int64_t lanes = shape.k - k < kWinogradPanel ? shape.k - k : kWinogradPanel;
      const int64_t channels = shape.c - c < kChunk ? shape.c - c : kChunk;
      const WinogradFilters from{filters.data + k * filters.k_stride + c * filters.c_stride, filters.k_stride,
                                 filters.c_stride, filters.tap_stride};
      kernels.gather(from, lanes, channels, taps);
      expand(taps, channels, packed + panel * panel_size + c * kWinogradPanel, shape.c * kWinogradPanel);
    }
  });
}

}  // namespace

WinogradPlan winograd_live_plan(const WinogradShape& shape, int threads) {
  return winograd_plan(shape, WinogradWeights::points, threads);
}

int64_t winograd_live_workspace_size(const WinogradPlan& plan) {
  const WinogradShape& shape = plan.shape;
  return padded(winograd_packed_size(shape, plan.weights)) + 2 * padded(shape.k) + winograd_workspace_size(plan);
}

bool winograd_run_live(const WinogradPlan& plan, const float* x, const WinogradFilters& filters,
                       const Epilogue& epilogue, float* out, float* workspace) {
  const WinogradShape& shape = plan.shape;
  float* packed = workspace;
  float* scale = packed + padded(winograd_packed_size(shape, plan.weights));
  float* shift = scale + padded(shape.k);
  const Norm& norm = epilogue.norm;
  const auto of = [](const Channels& channels) { return static_cast<const float*>(channels.data); };
  const float *mean = of(norm.mean), *var = of(norm.var_or_invstd), *weight = of(norm.weight), *bias = of(norm.bias);
  for (int64_t k = 0; k < shape.k; ++k) {
    const double factor = (weight ? weight[k] : 1.0) / std::sqrt(var[k] + norm.eps);
    scale[k] = static_cast<float>(factor);
    shift[k] = static_cast<float>((bias ? bias[k] : 0.0) - mean[k] * factor);
  }
  std::atomic<bool> finite{true};
  Loops loops{pack(shape, filters, packed, plan.slots)};
  winograd_loops(plan, x, packed, scale, {shift, epilogue.residual, static_cast<Pointwise>(epilogue.activation)}, out,
                 shift + padded(shape.k), &finite, loops);
  run_loops(loops, plan.slots);
  return finite;
}

bool winograd_convolve(const WinogradPlan& plan, const float* x, const WinogradFilters& filters, float* out,
                       float* workspace) {
  float* packed = workspace;
  float* shift = packed + padded(winograd_packed_size(plan.shape, plan.weights));
  std::fill_n(shift, plan.shape.k, 0.0f);
  std::atomic<bool> finite{true};
  Loops loops{pack(plan.shape, filters, packed, plan.slots)};
  winograd_loops(plan, x, packed, nullptr, {shift, nullptr, Pointwise::none}, out, shift + padded(plan.shape.k),
                 &finite, loops);
  run_loops(loops, plan.slots);
  return finite;
}

}  // namespace resnet_fused::cpu
