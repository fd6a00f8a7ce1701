// How a direct convolution is divided.
#include <algorithm>

#include "cpu/direct/direct.h"
#include "cpu/direct/isa/kernels.h"

namespace resnet_fused::cpu {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The number of zeros among the columns j < count of the plane of remainder `phase`. Column j is pixel j * stride +
// phase - padding.
int64_t zeros_before(const DirectShape& s, int64_t phase, int64_t count) {
  int64_t j = 0;
  while (j < count && j * s.stride() + phase < s.padding()) ++j;
  return j;
}
int64_t zeros_after(const DirectShape& s, int64_t phase, int64_t count) {
  int64_t j = 0;
  while (j < count && (count - 1 - j) * s.stride() + phase - s.padding() >= s.w) ++j;
  return j;
}

}  // namespace

DirectPlan direct_plan(const DirectShape& shape, int threads) {
  DirectPlan plan{};
  plan.shape = shape;
  plan.slots = threads;
  plan.blocks = shape.blocks();
  plan.panels = divide_up(shape.k, kDirectPanel);
  plan.pixels = direct_kernels(shape.format).pixels;

  std::vector<int64_t> rows, columns;  // of a tap: distance from the first pixel in its plane
  for (int64_t r = 0; r < shape.r; ++r) {
    for (int64_t s = 0; s < shape.s; ++s) {
      const int64_t y = r * shape.dilation(), x = s * shape.dilation();
      size_t plane = 0;
      while (plane < plan.phase_y.size() &&
             (plan.phase_y[plane] != y % shape.stride() || plan.phase_x[plane] != x % shape.stride())) {
        ++plane;
      }
      if (plane == plan.phase_y.size()) {
        plan.phase_y.push_back(y % shape.stride());
        plan.phase_x.push_back(x % shape.stride());
      }
      plan.tap_plane.push_back(static_cast<int64_t>(plane));
      rows.push_back(y / shape.stride());
      columns.push_back(x / shape.stride());
    }
  }
  plan.extra_rows = *std::max_element(rows.begin(), rows.end());
  const int64_t width = shape.q + *std::max_element(columns.begin(), columns.end());
  plan.shared = width - shape.q;  // with more shared pixels the rows of the output would overlap
  for (const int64_t phase : plan.phase_x) {
    plan.shared = std::min({plan.shared, zeros_before(shape, phase, width), zeros_after(shape, phase, width)});
  }
  plan.pitch = width - plan.shared;
  for (size_t tap = 0; tap < rows.size(); ++tap) plan.tap_offset.push_back(rows[tap] * plan.pitch + columns[tap]);

  // The weights of kChunk words serve all packed pixels before the next weights. An L2 of 2 MB keeps them beside the
  // pixels.
  constexpr int64_t kChunk = 256 * 1024 / sizeof(uint16_t);
  const int64_t block = shape.taps() * shape.parts() * kDirectPanel * kDirectLine;
  const int64_t chunks = divide_up(plan.blocks, std::max<int64_t>(1, kChunk / block));
  plan.chunk = divide_up(plan.blocks, chunks);
  // Words of packed pixels: few where the weights of a panel come from L2, many where they come from L3 for each
  // segment.
  const int64_t budget = (chunks > 1 ? 1400 : 640) * 1024 / sizeof(uint16_t);
  const auto plane_of = [&](int64_t out_rows) {
    return (out_rows + plan.extra_rows) * plan.pitch + plan.shared + plan.pixels;
  };
  const int64_t planes = static_cast<int64_t>(plan.phase_y.size()), lines = plan.blocks * shape.parts() * planes;
  const auto segment_of = [&](int64_t out_rows) { return lines * plane_of(out_rows) * kDirectLine; };
  const int64_t image = segment_of(shape.p);
  // Where the weights are much larger than the input, each thread reads its share of the weights and all pixels.
  plan.split_panels = threads > 1 && plan.panels >= threads && shape.n * image <= budget &&
                      direct_packed_size(shape) > 2 * shape.n * image;
  plan.rows = shape.p;
  if (!plan.split_panels) {
    const int64_t share = divide_up(shape.n * shape.p, threads);
    plan.rows = std::max<int64_t>(1, std::min(plan.rows, share));
    while (plan.rows > 1 && segment_of(plan.rows) > budget) plan.rows = divide_up(plan.rows, 2);
  }
  plan.plane = plane_of(plan.rows);
  plan.segment = segment_of(plan.rows);
  plan.segments = plan.split_panels ? shape.n : std::max<int64_t>(1, budget / plan.segment);
  const int64_t tiles = divide_up((plan.rows - 1) * plan.pitch + shape.q, plan.pixels);
  plan.sums = (chunks > 1 ? tiles * plan.segments : 1) * plan.pixels * kDirectPanel;
  // Weights that stay in L2 can be read again for the pixels of each call, and outputs are then written in their order.
  // Measured for 64 to 256 channels at 56x56, batch 8: 2.8 -> 2.1 ms. The matrix unit is too fast for it: it would wait
  // for L2.
  constexpr int64_t kFewWeights = 512 * 1024 / sizeof(uint16_t);
  plan.pixels_first = shape.on_vectors() && chunks == 1 && direct_packed_size(shape) <= kFewWeights;
  return plan;
}

int64_t direct_workspace_size(const DirectPlan& plan) {
  if (plan.shape.in_place()) return 0;
  const int64_t sums = plan.sums * static_cast<int64_t>(sizeof(float) / sizeof(uint16_t));
  return plan.segment * plan.segments * (plan.split_panels ? 1 : plan.slots) + sums * plan.slots;
}

}  // namespace resnet_fused::cpu
