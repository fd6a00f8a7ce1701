// The loops around the kernels of the gradient of a weight. Few channels: each part of the tiles is summed by one
// thread, and the sums of all parts are added in order. Many channels: threads share the transformed tiles of a block
// and divide the channels. No sum depends on the number of threads.
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
        sums(c_lines * panels * kGradientSums),
        part(x + grad + sums) {}
  int64_t c_lines, panels, point, line, x, grad, sums, part;
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
        workspace_(workspace) {}

  // Transforms x and the gradient at tile `first + i`, in the memory of a part.
  void transform(int64_t part, int64_t first, int64_t i) const {
    float *v = v_of(part), *m = v + sizes_.x;
    const int64_t tile = first + i, image = tile / (plan_.rows * plan_.columns);
    const int64_t y = tile / plan_.columns % plan_.rows * 2, x = tile % plan_.columns * 2;
    input_(
        {x_ + image * shape_.h * shape_.w * shape_.c, shape_.h, shape_.w, shape_.c, y - shape_.pad_h, x - shape_.pad_w},
        0, shape_.c, v + i * kWinogradLine, sizes_.line, sizes_.point);
    const GradientTile from{grad_ + ((image * shape_.p + y) * shape_.q + x) * shape_.k, shape_.q * shape_.k, shape_.k,
                            static_cast<int>(std::min<int64_t>(2, shape_.p - y)),
                            static_cast<int>(std::min<int64_t>(2, shape_.q - x))};
    kernels_.gradient(from, m + i * kWinogradLine, sizes_.line, sizes_.point);
  }

  int64_t pieces() const { return divide_up(sizes_.c_lines, plan_.lines) * divide_up(sizes_.panels, plan_.panels); }

  // Adds the products of a block of `tiles` tiles to the sums of one piece of work.
  void multiply(int64_t part, int64_t piece, int64_t tiles, bool first) const {
    GradientGemm gemm;
    gemm.m_line_stride = sizes_.line;
    for (int64_t point = 0; point < kGradientPoints; ++point) {
      for (int64_t tile = 0; tile < tiles; tile += kGradientTiles) {
        gemm.tiles = std::min(kGradientTiles, tiles - tile);
        gemm.accumulate = tile > 0 || !first;
        const float* v = v_of(part) + point * sizes_.point + tile * kWinogradLine;
        each(piece, [&](int64_t line, int64_t panel) {
          gemm.v = v + line * sizes_.line;
          gemm.m = v + sizes_.x + panel * 2 * sizes_.line;
          gemm.sums = sums_of(part, line, panel) + point * kWinogradLine * kWinogradPanel;
          kernels_.gemm(gemm);
        });
      }
    }
  }

  // Transforms the sums of one piece of work.
  void finish(int64_t piece) {
    each(piece, [&](int64_t line, int64_t panel) {
      const int64_t c = line * kWinogradLine, k = panel * kWinogradPanel;
      const WeightGradient to{to_.data + k * to_.k_stride + c * to_.c_stride, to_.k_stride, to_.c_stride,
                              to_.tap_stride};
      const bool finite =
          kernels_.finish(sums_of(0, line, panel), plan_.parts, sizes_.part, std::min(kWinogradLine, shape_.c - c),
                          std::min(kWinogradPanel, shape_.k - k), to);
      if (!finite) finite_.store(false, std::memory_order_relaxed);
    });
  }

  bool finite() const { return finite_.load(std::memory_order_relaxed); }

 private:
  float* v_of(int64_t part) const { return workspace_ + part * sizes_.part; }
  float* sums_of(int64_t part, int64_t line, int64_t panel) const {
    return v_of(part) + sizes_.x + sizes_.grad + (panel * sizes_.c_lines + line) * kGradientSums;
  }

  // Calls use(line, panel) for each of a piece of work.
  template <class Use>
  void each(int64_t piece, const Use& use) const {
    const int64_t pieces = divide_up(sizes_.c_lines, plan_.lines);
    const int64_t line = piece % pieces * plan_.lines, panel = piece / pieces * plan_.panels;
    for (int64_t k = panel; k < std::min(panel + plan_.panels, sizes_.panels); ++k) {
      for (int64_t c = line; c < std::min(line + plan_.lines, sizes_.c_lines); ++c) use(c, k);
    }
  }

  const WeightGradientPlan& plan_;
  const Convolution& shape_;
  const Sizes sizes_;
  const WeightGradientKernels& kernels_;
  const WinogradTransforms::Input input_;
  const float *grad_, *x_;
  const WeightGradient& to_;
  float* workspace_;
  std::atomic<bool> finite_{true};
};

}  // namespace

WeightGradientPlan winograd_weight_gradient_plan(const Convolution& shape, int threads) {
  WeightGradientPlan plan{};
  plan.shape = shape;
  plan.slots = threads;
  plan.rows = divide_up(shape.p, 2), plan.columns = divide_up(shape.q, 2);
  plan.tiles = shape.n * plan.rows * plan.columns;
  const int64_t lines = divide_up(shape.c, kWinogradLine), panels = divide_up(shape.k, kWinogradPanel);
  // Parts of the tiles need no thread to wait for another, and their blocks stay in L2. Their sums take 8 MB at most.
  constexpr int64_t kBytes = 8 << 20, kMostParts = 16, kFewestParts = 8;
  const int64_t sums = lines * panels * kGradientSums * 4;
  plan.parts = std::min({kMostParts, kBytes / sums, plan.tiles / (2 * kGradientTiles)});
  plan.lines = 2, plan.panels = 2;  // a piece of work reads each value from L2 or L3 for 32 or 64 products
  if (plan.parts >= kFewestParts) {
    const int64_t tiles = divide_up(plan.tiles, plan.parts);
    plan.block = divide_up(tiles, divide_up(tiles, kGradientTiles));
    return plan;
  }
  plan.parts = 1;
  // A block's transformed tiles take 64 bytes a tile and channel, and stay in L3. Larger blocks add to the sums less
  // often.
  const int64_t most = std::max(kGradientTiles, kBytes / (64 * (shape.c + shape.k)));
  const int64_t blocks = divide_up(plan.tiles, most);
  plan.block = std::min(plan.tiles, divide_up(divide_up(plan.tiles, blocks), kGradientTiles) * kGradientTiles);
  const auto pieces = [&] { return divide_up(lines, plan.lines) * divide_up(panels, plan.panels); };
  if (pieces() < 4 * threads) plan.panels = 1;
  if (pieces() < 4 * threads) plan.lines = 1;
  return plan;
}

int64_t winograd_weight_gradient_workspace_size(const WeightGradientPlan& plan) {
  return plan.parts * Sizes(plan).part;
}

bool winograd_weight_gradient(const WeightGradientPlan& plan, const float* grad, const float* x,
                              const WeightGradient& to, float* workspace) {
  Run run(plan, grad, x, to, workspace);
  Loops loops;
  if (plan.parts > 1) {
    loops.push_back({plan.parts, [&](int64_t part, int) {
                       const int64_t begin = plan.tiles * part / plan.parts, end = plan.tiles * (part + 1) / plan.parts;
                       for (int64_t first = begin; first < end; first += plan.block) {
                         const int64_t count = std::min(plan.block, end - first);
                         for (int64_t i = 0; i < count; ++i) run.transform(part, first, i);
                         for (int64_t piece = 0; piece < run.pieces(); ++piece) {
                           run.multiply(part, piece, count, first == begin);
                         }
                       }
                     }});
    loops.push_back({run.pieces(), [&](int64_t piece, int) { run.finish(piece); }});
  } else {
    for (int64_t first = 0; first < plan.tiles; first += plan.block) {
      const int64_t count = std::min(plan.block, plan.tiles - first);
      loops.push_back(ranges(count, plan.slots, [&run, first](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) run.transform(0, first, i);
      }));
      loops.push_back({run.pieces(), [&run, &plan, first, count](int64_t piece, int) {
                         run.multiply(0, piece, count, first == 0);
                         if (first + count == plan.tiles) run.finish(piece);
                       }});
    }
  }
  run_loops(loops, plan.slots);
  return run.finite();
}

}  // namespace resnet_fused::cpu
