// The loops around the kernels of the gradient of a weight. Threads share the transformed tiles of a block and divide
// the channels, so no sum depends on the number of threads.
#include "cpu/winograd/weight_gradient.h"

#include <algorithm>
#include <atomic>

#include "cpu/base/isa.h"
#include "cpu/base/parallel.h"
#include "cpu/winograd/isa/weight_gradient.h"

namespace resnet_fused::cpu {
RESNET_FUSED_PER_ISA(extern const WeightGradientKernels weight_gradient_kernels;)

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sizes, in floats, that follow from a plan.
struct Sizes {
  explicit Sizes(const WeightGradientPlan& plan)
      : c_lines(divide_up(plan.shape.c, kWinogradLine)),
        panels(divide_up(plan.shape.k, kWinogradPanel)),
        point((plan.block | 1) * kWinogradLine),  // an odd number of lines, as in run.cpp
        line(kGradientPoints * point + kWinogradLine),
        x(c_lines * line),
        grad(panels * 2 * line),
        sums(c_lines * panels * kGradientSums) {}
  int64_t c_lines, panels, point, line, x, grad, sums;
};

class Run {
 public:
  Run(const WeightGradientPlan& plan, const float* grad, const float* x, const WeightGradient& to, float* workspace)
      : plan_(plan),
        shape_(plan.shape),
        sizes_(plan),
        kernels_(RESNET_FUSED_BEST(weight_gradient_kernels)),
        input_(winograd_kernels(DType::f32).transforms.input2),
        grad_(grad),
        x_(x),
        to_(to),
        v_(workspace),
        m_(v_ + sizes_.x),
        sums_(m_ + sizes_.grad) {}

  // Transforms x and the gradient at tile `first + i`.
  void transform(int64_t first, int64_t i) {
    const int64_t tile = first + i, image = tile / (plan_.rows * plan_.columns);
    const int64_t y = tile / plan_.columns % plan_.rows * 2, x = tile % plan_.columns * 2;
    input_(
        {x_ + image * shape_.h * shape_.w * shape_.c, shape_.h, shape_.w, shape_.c, y - shape_.pad_h, x - shape_.pad_w},
        0, shape_.c, v_ + i * kWinogradLine, sizes_.line, sizes_.point);
    const GradientTile from{grad_ + ((image * shape_.p + y) * shape_.q + x) * shape_.k, shape_.q * shape_.k, shape_.k,
                            static_cast<int>(std::min<int64_t>(2, shape_.p - y)),
                            static_cast<int>(std::min<int64_t>(2, shape_.q - x))};
    kernels_.gradient(from, m_ + i * kWinogradLine, sizes_.line, sizes_.point);
  }

  int64_t pieces() const { return divide_up(sizes_.c_lines, plan_.lines) * divide_up(sizes_.panels, plan_.panels); }

  // Adds the products of a block of `tiles` tiles to the sums of one piece of work.
  void multiply(int64_t piece, int64_t tiles, bool first, bool last) {
    const int64_t parts = divide_up(sizes_.c_lines, plan_.lines);
    const int64_t line = piece % parts * plan_.lines, line_end = std::min(line + plan_.lines, sizes_.c_lines);
    const int64_t panel = piece / parts * plan_.panels, panel_end = std::min(panel + plan_.panels, sizes_.panels);
    GradientGemm gemm;
    gemm.m_line_stride = sizes_.line;
    for (int64_t point = 0; point < kGradientPoints; ++point) {
      for (int64_t tile = 0; tile < tiles; tile += kGradientTiles) {
        gemm.tiles = std::min(kGradientTiles, tiles - tile);
        gemm.accumulate = tile > 0 || !first;
        const int64_t at = point * sizes_.point + tile * kWinogradLine;
        for (int64_t k = panel; k < panel_end; ++k) {
          for (int64_t c = line; c < line_end; ++c) {
            gemm.v = v_ + c * sizes_.line + at;
            gemm.m = m_ + k * 2 * sizes_.line + at;
            gemm.sums = sums_of(c, k) + point * kWinogradLine * kWinogradPanel;
            kernels_.gemm(gemm);
          }
        }
      }
    }
    if (!last) return;
    for (int64_t k = panel; k < panel_end; ++k) {
      for (int64_t c = line; c < line_end; ++c) finish(c, k);
    }
  }

  bool finite() const { return finite_.load(std::memory_order_relaxed); }

 private:
  float* sums_of(int64_t line, int64_t panel) const { return sums_ + (panel * sizes_.c_lines + line) * kGradientSums; }

  void finish(int64_t line, int64_t panel) {
    const int64_t c = line * kWinogradLine, k = panel * kWinogradPanel;
    const WeightGradient part{to_.data + k * to_.k_stride + c * to_.c_stride, to_.k_stride, to_.c_stride,
                              to_.tap_stride};
    if (!kernels_.finish(sums_of(line, panel), std::min(kWinogradLine, shape_.c - c),
                         std::min(kWinogradPanel, shape_.k - k), part)) {
      finite_.store(false, std::memory_order_relaxed);
    }
  }

  const WeightGradientPlan& plan_;
  const Convolution& shape_;
  const Sizes sizes_;
  const WeightGradientKernels& kernels_;
  const WinogradTransforms::Input input_;
  const float *grad_, *x_;
  const WeightGradient& to_;
  float *v_, *m_, *sums_;
  std::atomic<bool> finite_{true};
};

}  // namespace

WeightGradientPlan winograd_weight_gradient_plan(const Convolution& shape, int threads) {
  WeightGradientPlan plan{};
  plan.shape = shape;
  plan.rows = divide_up(shape.p, 2), plan.columns = divide_up(shape.q, 2);
  plan.tiles = shape.n * plan.rows * plan.columns;
  // A block's transformed tiles take 64 bytes a tile and channel, and stay in L3. Larger blocks add to the sums less
  // often.
  constexpr int64_t kBytes = 8 << 20;
  const int64_t most = std::max(kGradientTiles, kBytes / (64 * (shape.c + shape.k)));
  const int64_t blocks = divide_up(plan.tiles, most);
  plan.block = std::min(plan.tiles, divide_up(divide_up(plan.tiles, blocks), kGradientTiles) * kGradientTiles);
  // A piece of 2 lines and 2 panels reads each value from L2 or L3 for 32 or 64 products. Smaller pieces where threads
  // would have none.
  const int64_t lines = divide_up(shape.c, kWinogradLine), panels = divide_up(shape.k, kWinogradPanel);
  plan.lines = 2, plan.panels = 2;
  const auto pieces = [&] { return divide_up(lines, plan.lines) * divide_up(panels, plan.panels); };
  if (pieces() < 4 * threads) plan.panels = 1;
  if (pieces() < 4 * threads) plan.lines = 1;
  return plan;
}

int64_t winograd_weight_gradient_workspace_size(const WeightGradientPlan& plan) {
  const Sizes sizes(plan);
  return sizes.x + sizes.grad + sizes.sums;
}

bool winograd_weight_gradient(const WeightGradientPlan& plan, const float* grad, const float* x,
                              const WeightGradient& to, float* workspace) {
  Run run(plan, grad, x, to, workspace);
  for (int64_t first = 0; first < plan.tiles; first += plan.block) {
    const int64_t count = std::min(plan.block, plan.tiles - first);
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run.transform(first, i);
    });
    parallel_for(run.pieces(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        run.multiply(piece, count, first == 0, first + count == plan.tiles);
      }
    });
  }
  return run.finite();
}

}  // namespace resnet_fused::cpu
