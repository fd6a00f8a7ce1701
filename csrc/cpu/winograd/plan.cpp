// Every decision about blocks of the Winograd convolutions. Numbers are measured on a 2-core Intel Xeon with AVX-512 (2
// MiB of L2 a core, 31 GB/s a core from L3, 246 GFLOP/s a core), 2026-11-24. docs/design/winograd.md has more.
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/winograd.h"

namespace resnet_fused::cpu {
namespace {

// The tiles that cover `size` outputs with the fewest products. A tile of m outputs has m + 2 points.
WinogradAxis axis_of(int m, int64_t size) {
  WinogradAxis best{m, (size + m - 1) / m, (size + m - 1) / m};
  if (m == 2) return best;
  int64_t least = 6 * best.count;
  for (int64_t whole = best.whole - 1; whole >= 0 && whole + 3 >= best.whole; --whole) {
    const int64_t shorter = (size - 4 * whole + 2) / 3;
    if (6 * whole + 5 * shorter >= least) continue;
    least = 6 * whole + 5 * shorter;
    best = {m, whole, whole + shorter};
  }
  return best;
}

}  // namespace

WinogradPlan winograd_plan(const WinogradShape& shape, WinogradWeights weights, int threads) {
  WinogradPlan plan{};
  plan.shape = shape;
  plan.weights = weights;
  plan.rows = axis_of(shape.m, shape.p);
  plan.columns = axis_of(shape.m, shape.q);
  plan.tiles = shape.n * plan.rows.count * plan.columns.count;
  plan.slots = threads;
  plan.most = winograd_kernels(shape.dtype).max_rows;

  // Slots that split the tiles each read all weights. Slots that split the panels each read all transformed tiles, most
  // of them from another core's cache, and wait for each other twice per block. Panels are therefore split only where a
  // slot would not fill a block. 256 channels at 14x14, 8 images, two threads of a Zen 5 (2026-11-28): 1.28 ms with
  // split tiles, 1.39 ms with split panels, and 1.92 ms with split panels beside a process that uses a part of one
  // core.
  const bool taps = weights == WinogradWeights::taps;
  constexpr int64_t kFewTiles = 32;
  const int64_t panels = (shape.k + kWinogradPanel - 1) / kWinogradPanel;
  plan.split_panels = plan.tiles < shape.k && plan.tiles < kFewTiles * threads && panels >= threads;

  // With more tiles in a block the weights are read fewer times, but less of the block stays in L2. At 16 images, per
  // core of the Xeon: 64 channels 14 or 28 tiles, 128 channels 28 (7.0 ms; 42: 7.3, 84: 7.9), 512 channels 64 (8.9 ms;
  // 32: 10.9). Zen 5, 8 images: 256 channels 32 (1.28 ms; 64: 1.43). Weights that are transformed again for every block
  // need larger blocks.
  const int64_t widths[] = {shape.m == 4 ? 160 : 64, shape.m == 4 ? 320 : 64};
  plan.block = taps ? (shape.m == 4 ? 64 : 128) : shape.c <= widths[0] ? 28 : shape.c <= widths[1] ? kFewTiles : 64;
  if (plan.block > plan.tiles && plan.tiles > 0) plan.block = plan.tiles;

  // A group reads the transformed tiles once for all its panels. The group's products share L2 with the tiles. One
  // panel at a time cost 7 % (64 channels) and 16 % (512). Eight panels gained nothing over four.
  plan.group = taps ? 1 : 4;

  // 295 KB (m = 4) and 262 KB (m = 2) of weights are transformed at a time. They stay in L2 until they have been
  // multiplied.
  plan.chunk = !taps ? shape.depth() : shape.m == 4 ? 64 : 128;
  return plan;
}

}  // namespace resnet_fused::cpu
