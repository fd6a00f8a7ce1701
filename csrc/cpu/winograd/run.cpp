// The loops around the kernels: which piece transforms which tile and multiplies which panel, and in which memory.
#include <algorithm>
#include <atomic>
#include <memory>

#include "cpu/base/isa.h"
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/tiles.h"
#include "cpu/winograd/winograd.h"

namespace resnet_fused::cpu {
RESNET_FUSED_PER_ISA(extern const WinogradKernels winograd_kernels_f32;)
RESNET_FUSED_PER_ISA_BF16(extern const WinogradKernels winograd_kernels_bf16;)

const WinogradKernels& winograd_kernels(DType dtype) {
  if (dtype == DType::bf16) return RESNET_FUSED_BEST_BF16(winograd_kernels_bf16);
  return RESNET_FUSED_BEST(winograd_kernels_f32);
}

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sizes, in floats, that follow from a plan.
struct Sizes {
  explicit Sizes(const WinogradPlan& plan)
      : points((plan.shape.m + 2) * (plan.shape.m + 2)),
        panels(divide_up(plan.shape.k, kWinogradPanel)),
        panel_weights(winograd_panel_size(plan.shape, plan.weights)),
        lines(divide_up(plan.shape.depth(), kWinogradLine)),
        // Strides have an odd number of lines. With a power of two, values stored together would fall into few sets of
        // L1.
        product(points * kWinogradPanel + kWinogradLine),
        expanded_point(plan.chunk * kWinogradPanel + kWinogradLine),
        transformed(lines * line(plan.block)),
        products(product * plan.block * plan.group),
        expanded(plan.weights == WinogradWeights::taps ? points * expanded_point : 0),
        slot((plan.split_panels ? 0 : transformed) + products + expanded) {}
  // Floats of the transformed input of `tiles` tiles, 16 channels.
  int64_t line(int64_t tiles) const { return (points * tiles | 1) * kWinogradLine; }
  int64_t points, panels, panel_weights, lines, product, expanded_point, transformed, products, expanded, slot;
};

class Run {
 public:
  Run(const WinogradPlan& plan, const void* x, const float* packed, const float* scale, const FoldedEpilogue& epilogue,
      void* out, std::atomic<bool>* finite)
      : plan_(plan),
        shape_(plan_.shape),
        sizes_(plan),
        kernels_(winograd_kernels(plan.shape.dtype)),
        bytes_(plan.shape.dtype == DType::bf16 ? 2 : 4),
        x_(static_cast<const char*>(x)),
        packed_(packed),
        scale_(scale),
        epilogue_(epilogue),
        out_(static_cast<char*>(out)),
        finite_(finite) {}
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  const Sizes& sizes() const { return sizes_; }

  // Transforms channels c_begin to c_end of tile i of a block.
  void transform(const WinogradBlock& block, int64_t i, int64_t c_begin, int64_t c_end, float* v) const {
    const WinogradTile& tile = block[i];
    const WinogradInput in{x_ + tile.image * shape_.h * shape_.w * shape_.c * bytes_,
                           shape_.h,
                           shape_.w,
                           shape_.c,
                           tile.y - shape_.padding(),
                           tile.x - shape_.padding()};
    const WinogradTransforms& transforms = kernels_.transforms;
    (shape_.m == 2 ? transforms.input2 : transforms.input4[4 - tile.height][4 - tile.width])(
        in, c_begin, c_end, v + i * kWinogradLine, sizes_.line(block.count()), block.count() * kWinogradLine);
  }

  // Computes output panels [panel_begin, panel_end) of a block. own: the slot's memory for products and expanded
  // weights.
  void multiply(const WinogradBlock& block, int64_t panel_begin, int64_t panel_end, const float* v, float* own) const {
    for (int64_t group = panel_begin; group < panel_end; group += plan_.group) {
      const int64_t panels = group + plan_.group < panel_end ? plan_.group : panel_end - group;
      for (int64_t c = 0; c < shape_.depth(); c += plan_.chunk) multiply_chunk(block, group, panels, c, v, own);
      for (int64_t tile = 0; tile < block.count(); ++tile) {
        for (int64_t i = 0; i < panels; ++i) {
          output(block[tile], group + i, own + (tile * panels + i) * sizes_.product);
        }
      }
    }
  }

 private:
  // Multiplies `panels` panels, from panel `group` on, with terms c to c + chunk of the depth.
  void multiply_chunk(const WinogradBlock& block, int64_t group, int64_t panels, int64_t c, const float* v,
                      float* own) const {
    const int64_t channels = c + plan_.chunk < shape_.depth() ? plan_.chunk : shape_.depth() - c;
    const bool taps = plan_.weights == WinogradWeights::taps;
    float* expanded = own + sizes_.products;
    const float* weights = packed_ + group * sizes_.panel_weights + c * 9 * kWinogradPanel;
    if (taps) (shape_.m == 2 ? kernels_.expand2 : kernels_.expand4)(weights, channels, expanded, sizes_.expanded_point);

    WinogradGemm gemm;
    gemm.c = channels;
    gemm.line_stride = sizes_.line(block.count());
    gemm.product_stride = panels * sizes_.product;
    gemm.accumulate = c > 0;
    // Bytes of weights to be read next. For taps: a part of the next taps for each point. For points: the next panel or
    // point.
    const int64_t ahead_bytes = channels * kWinogradPanel * 4 * (taps ? 9 : 1) / (taps ? sizes_.points : 1);
    const float* lines = v + c / kWinogradLine * gemm.line_stride;
    for (int64_t point = 0; point < sizes_.points; ++point) {
      const auto [begin, end] = block.with(point);
      const int64_t parts = divide_up(end - begin, plan_.most);
      if (parts == 0) continue;
      gemm.ahead_step = ahead_bytes / parts / channels;
      for (int64_t i = 0; i < panels; ++i) {
        gemm.u = taps ? expanded + point * sizes_.expanded_point : weights_at(group + i, point);
        const float* next = taps             ? weights + channels * 9 * kWinogradPanel + point * (ahead_bytes / 4)
                            : i + 1 < panels ? weights_at(group + i + 1, point)
                                             : weights_at(group, point + 1);
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t tile = begin + part_begin(end - begin, parts, part);
          const int64_t tiles = begin + part_begin(end - begin, parts, part + 1) - tile;
          gemm.v = lines + (point * block.count() + tile) * kWinogradLine;
          gemm.products = own + (tile * panels + i) * sizes_.product + point * kWinogradPanel;
          gemm.ahead = reinterpret_cast<const char*>(next) + part * gemm.ahead_step * channels;
          kernels_.gemm[tiles](gemm);
        }
      }
    }
  }

  const float* weights_at(int64_t panel, int64_t point) const {
    return packed_ + panel * sizes_.panel_weights + point * shape_.depth() * kWinogradPanel;
  }

  void output(const WinogradTile& tile, int64_t panel, const float* products) const {
    const int64_t height = shape_.p, width = shape_.q, k = panel * kWinogradPanel;
    const int64_t offset = ((tile.image * height + tile.y) * width + tile.x) * shape_.k + k;
    const auto at_most = [](int64_t left, int64_t limit) { return static_cast<int>(left < limit ? left : limit); };
    WinogradOutput to;
    to.out = out_ + offset * bytes_;
    const auto* residual = static_cast<const char*>(epilogue_.residual);
    to.residual = residual ? residual + offset * bytes_ : nullptr;
    to.scale = scale_ ? scale_ + k : nullptr;
    to.shift = epilogue_.shift + k;
    to.row_stride = width * shape_.k;
    to.pixel_stride = shape_.k;
    to.height = at_most(height - tile.y, tile.height);
    to.width = at_most(width - tile.x, tile.width);
    to.channels = at_most(shape_.k - k, kWinogradPanel);
    to.activation = epilogue_.activation;
    const WinogradTransforms& transforms = kernels_.transforms;
    const bool finite =
        (shape_.m == 2 ? transforms.output2 : transforms.output4[4 - tile.height][4 - tile.width])(products, to);
    if (!finite && finite_) finite_->store(false, std::memory_order_relaxed);
  }

  const WinogradPlan plan_;
  const WinogradShape& shape_;
  const Sizes sizes_;
  const WinogradKernels& kernels_;
  const int64_t bytes_;
  const char* x_;
  const float *packed_, *scale_;
  const FoldedEpilogue epilogue_;
  char* out_;
  std::atomic<bool>* finite_;
};

}  // namespace

int64_t winograd_workspace_size(const WinogradPlan& plan) {
  const Sizes sizes(plan);
  return plan.slots * sizes.slot + (plan.split_panels ? sizes.transformed : 0);
}

void winograd_loops(const WinogradPlan& plan, const void* x, const float* packed, const float* scale,
                    const FoldedEpilogue& epilogue, void* out, float* workspace, std::atomic<bool>* finite,
                    Loops& loops) {
  const auto run = std::make_shared<const Run>(plan, x, packed, scale, epilogue, out, finite);
  const Sizes& sizes = run->sizes();
  if (!plan.split_panels) {
    // Every slot's share has whole blocks of the same size.
    const int64_t share = divide_up(plan.tiles, plan.slots);
    const int64_t blocks = std::min(plan.tiles, plan.slots * divide_up(share, plan.block));
    loops.push_back({blocks, [=](int64_t i, int slot) {
                       const int64_t first = part_begin(plan.tiles, blocks, i);
                       const WinogradBlock block(plan, first, part_begin(plan.tiles, blocks, i + 1) - first);
                       float* v = workspace + slot * run->sizes().slot;
                       for (int64_t tile = 0; tile < block.count(); ++tile) {
                         run->transform(block, tile, 0, plan.shape.c, v);
                       }
                       run->multiply(block, 0, run->sizes().panels, v, v + run->sizes().transformed);
                     }});
    return;
  }
  float* own = workspace + sizes.transformed;
  for (int64_t first = 0; first < plan.tiles; first += plan.block) {
    const auto block = std::make_shared<const WinogradBlock>(plan, first, std::min(plan.block, plan.tiles - first));
    // Pieces of 64 channels, so that every slot gets a piece where there are few tiles.
    const int64_t strips = divide_up(plan.shape.c, 64);
    loops.push_back(ranges(block->count() * strips, plan.slots, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tile = i / strips, c = i % strips * 64;
        run->transform(*block, tile, c, std::min(c + 64, plan.shape.c), workspace);
      }
    }));
    const int64_t share = divide_up(sizes.panels, plan.slots);
    const int64_t groups = std::min(sizes.panels, plan.slots * divide_up(share, plan.group));
    loops.push_back({groups, [=](int64_t i, int slot) {
                       const int64_t panels = run->sizes().panels;
                       run->multiply(*block, part_begin(panels, groups, i), part_begin(panels, groups, i + 1),
                                     workspace, own + slot * run->sizes().slot);
                     }});
  }
}

}  // namespace resnet_fused::cpu
