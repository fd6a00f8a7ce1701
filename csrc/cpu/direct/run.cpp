// The loops around the kernels: when pixels are packed, and which piece multiplies which pixels with which weights.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "cpu/base/isa.h"
#include "cpu/direct/direct.h"
#include "cpu/direct/isa/kernels.h"

namespace resnet_fused::cpu {
RESNET_FUSED_PER_ISA_BF16(extern const DirectKernels direct_kernels[2];)
namespace portable {
extern const DirectKernels amx_kernels[2];
}
#ifdef RESNET_FUSED_WITH_AMX
namespace amx {
extern const DirectKernels amx_kernels[2];
}
#endif

const DirectKernels& direct_kernels(DirectFormat format) {
  const bool bf16 = format == DirectFormat::bf16 || format == DirectFormat::amx_bf16;
  if (format == DirectFormat::amx_f32 || format == DirectFormat::amx_bf16) {
#ifdef RESNET_FUSED_WITH_AMX
    if (isa() == Isa::amx) return amx::amx_kernels[bf16];
#endif
    return portable::amx_kernels[bf16];
  }
  return RESNET_FUSED_BEST_BF16(direct_kernels)[bf16];
}

namespace {

struct Segment {
  int64_t image, row, rows;  // of the output
};

class Run {
 public:
  Run(DirectPlan plan, const void* x, const uint16_t* packed, const FoldedEpilogue& epilogue, void* out)
      : plan_(std::move(plan)),
        shape_(plan_.shape),
        kernels_(direct_kernels(shape_.format)),
        bytes_(shape_.is_bf16() ? 2 : 4),
        part_stride_(static_cast<int64_t>(plan_.phase_y.size()) * plan_.plane * kDirectLine),
        block_stride_(part_stride_ * shape_.parts()),
        x_(static_cast<const char*>(x)),
        packed_(packed),
        epilogue_(epilogue),
        out_(static_cast<char*>(out)) {
    for (size_t tap = 0; tap < plan_.tap_plane.size(); ++tap) {
      taps_.push_back((plan_.tap_plane[tap] * plan_.plane + plan_.tap_offset[tap]) * kDirectLine);
    }
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  const DirectPlan& plan() const { return plan_; }

  // Packs rows [begin, end) of plane `phase` of a segment into its memory. Row 0 is the first row that the segment's
  // output reads.
  void pack(const Segment& segment, int64_t phase, int64_t begin, int64_t end, uint16_t* memory) const {
    uint16_t* plane = memory + phase * plan_.plane * kDirectLine;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = (segment.row + row) * shape_.stride() + plan_.phase_y[phase] - shape_.padding();
      pack_row(segment.image, y, plan_.phase_x[phase], plane + row * plan_.pitch * kDirectLine);
    }
    if (end == plane_rows(segment)) zero(plane + end * plan_.pitch * kDirectLine, plan_.shared);
  }
  int64_t plane_rows(const Segment& segment) const { return segment.rows + plan_.extra_rows; }
  void pack(const Segment& segment, uint16_t* memory) const {
    for (size_t phase = 0; phase < plan_.phase_y.size(); ++phase) {
      pack(segment, static_cast<int64_t>(phase), 0, plane_rows(segment), memory);
    }
  }

  // Computes output panels [begin, end) of segments that lie in `memory` one after another. sums: plan.sums floats.
  void multiply(const std::vector<Segment>& segments, int64_t begin, int64_t end, const uint16_t* memory,
                float* sums) const {
    if (plan_.pixels_first) return multiply_pixels(segments, begin, end, memory, sums);
    const int64_t block_weights = kDirectPanel * kDirectLine * shape_.taps() * shape_.parts();
    DirectGemm gemm = common();
    gemm.b = packed_ + begin * plan_.blocks * block_weights;
    int64_t calls = 0;
    for (const Segment& segment : segments) calls += tiles(segment);
    for (int64_t panel = begin; panel < end; ++panel) {
      gemm.filters = filters(panel);
      for (int64_t block = 0; block < plan_.blocks; block += plan_.chunk) {
        set_blocks(gemm, block, std::min(plan_.chunk, plan_.blocks - block));
        gemm.add = block > 0;
        gemm.c = sums;
        // The next chunk is prefetched while this one is used. That is done for three parts; for one part it gained
        // nothing.
        const int64_t weights = gemm.blocks * block_weights, products = 6 * shape_.taps() * gemm.blocks;
        gemm.ahead_lines = (weights / kDirectLine + calls * products - 1) / (calls * products);
        gemm.ahead = reinterpret_cast<const char*>(gemm.b + weights);
        for (size_t i = 0; i < segments.size(); ++i) {
          for (int64_t tile = 0; tile < tiles(segments[i]); ++tile) {
            gemm.a = memory + i * plan_.segment + block * block_stride_ + tile * plan_.pixels * kDirectLine;
            gemm.pixels = std::min(plan_.pixels, pixels(segments[i]) - tile * plan_.pixels);
            kernels_.gemm(gemm);
            if (block + gemm.blocks == plan_.blocks) output(segments[i], tile * plan_.pixels, panel, gemm.c);
            if (plan_.chunk < plan_.blocks) gemm.c += plan_.pixels * kDirectPanel;
            gemm.ahead += gemm.ahead_lines * products * 64;
            if (gemm.ahead >= reinterpret_cast<const char*>(gemm.b + 2 * weights)) gemm.ahead_lines = 0;
          }
        }
        gemm.b += weights;
      }
    }
  }

  // The output rows [begin, end) of the whole batch, divided at images and at plan.rows.
  std::vector<Segment> segments(int64_t begin, int64_t end) const {
    std::vector<Segment> result;
    const int64_t height = shape_.p;
    while (begin < end) {
      const int64_t left = std::min(end - begin, height - begin % height);
      const int64_t rows = (left + (left + plan_.rows - 1) / plan_.rows - 1) / ((left + plan_.rows - 1) / plan_.rows);
      result.push_back({begin / height, begin % height, rows});
      begin += rows;
    }
    return result;
  }

  // The segments that a slot packs and multiplies at a time, for the whole batch. Each slot's share is divided evenly.
  std::vector<std::vector<Segment>> groups() const {
    std::vector<std::vector<Segment>> result;
    const int64_t rows = shape_.n * shape_.p;
    for (int slot = 0; slot < plan_.slots; ++slot) {
      const auto own = segments(part_begin(rows, plan_.slots, slot), part_begin(rows, plan_.slots, slot + 1));
      const auto count = static_cast<int64_t>(own.size()), groups = (count + plan_.segments - 1) / plan_.segments;
      for (int64_t i = 0; i < groups; ++i) {
        result.emplace_back(own.begin() + part_begin(count, groups, i), own.begin() + part_begin(count, groups, i + 1));
      }
    }
    return result;
  }

 private:
  DirectGemm common() const {
    DirectGemm gemm{};
    gemm.block_stride = block_stride_;
    gemm.part_stride = part_stride_;
    gemm.taps = taps_.data();
    gemm.tap_count = shape_.taps();
    return gemm;
  }

  void set_blocks(DirectGemm& gemm, int64_t begin, int64_t count) const {
    const int64_t channels = std::min(shape_.block(), shape_.c - (begin + count - 1) * shape_.block());
    gemm.blocks = count;
    gemm.last = (channels * 16 + shape_.block() - 1) / shape_.block();
  }
  int64_t filters(int64_t panel) const { return std::min(kDirectPanel, shape_.k - panel * kDirectPanel); }

  // The same computation with the order of the loops reversed: see DirectPlan::pixels_first.
  void multiply_pixels(const std::vector<Segment>& segments, int64_t begin, int64_t end, const uint16_t* memory,
                       float* sums) const {
    DirectGemm gemm = common();
    set_blocks(gemm, 0, plan_.blocks);
    gemm.c = sums;
    for (size_t i = 0; i < segments.size(); ++i) {
      for (int64_t tile = 0; tile < tiles(segments[i]); ++tile) {
        gemm.a = memory + i * plan_.segment + tile * plan_.pixels * kDirectLine;
        gemm.pixels = std::min(plan_.pixels, pixels(segments[i]) - tile * plan_.pixels);
        for (int64_t panel = begin; panel < end; ++panel) {
          gemm.filters = filters(panel);
          gemm.b = packed_ + panel * plan_.blocks * kDirectPanel * kDirectLine * shape_.taps();
          kernels_.gemm(gemm);
          output(segments[i], tile * plan_.pixels, panel, sums);
        }
      }
    }
  }

  int64_t tiles(const Segment& segment) const { return (pixels(segment) + plan_.pixels - 1) / plan_.pixels; }
  int64_t pixels(const Segment& segment) const { return (segment.rows - 1) * plan_.pitch + shape_.q; }

  void zero(uint16_t* to, int64_t pixels) const {
    for (int64_t block = 0; block < plan_.blocks; ++block) {
      for (int64_t part = 0; part < shape_.parts(); ++part) {
        std::memset(to + block * block_stride_ + part * part_stride_, 0, pixels * kDirectLine * 2);
      }
    }
  }

  void pack_row(int64_t image, int64_t y, int64_t phase, uint16_t* to) const {
    if (y < 0 || y >= shape_.h) return zero(to, plan_.pitch);
    // Column j is pixel j * stride + phase - padding.
    const int64_t offset = phase - shape_.padding(), stride = shape_.stride();
    const int64_t first = std::min(plan_.pitch, offset < 0 ? (-offset + stride - 1) / stride : 0);
    const int64_t past = shape_.w <= offset ? first : (shape_.w - offset + stride - 1) / stride;
    const int64_t last = std::max(first, std::min(plan_.pitch, past));
    if (first > 0) zero(to, first);
    if (last < plan_.pitch) zero(to + last * kDirectLine, plan_.pitch - last);
    if (last == first) return;
    const char* from = x_ + ((image * shape_.h + y) * shape_.w + first * stride + offset) * shape_.c * bytes_;
    kernels_.pack(from, stride * shape_.c, last - first, shape_.c, to + first * kDirectLine, block_stride_,
                  part_stride_);
  }

  // Writes outputs from the sums of a call's pixels, `first` and following. Sums between the rows belong to no output.
  void output(const Segment& segment, int64_t first, int64_t panel, const float* sums) const {
    const int64_t width = shape_.q, k = panel * kDirectPanel;
    DirectOutput to{};
    to.shift = epilogue_.shift + k;
    to.pixel_stride = shape_.k;
    to.channels = static_cast<int>(filters(panel));
    to.activation = epilogue_.activation;
    int64_t y = first / plan_.pitch, x = first % plan_.pitch;
    for (int64_t pixel = 0; pixel < plan_.pixels && y < segment.rows;) {
      const int64_t run = std::min(plan_.pixels - pixel, width - x);
      if (run > 0) {
        const int64_t at = (((segment.image * shape_.p + segment.row + y) * width + x) * shape_.k + k) * bytes_;
        to.c = sums + pixel * kDirectPanel;
        to.pixels = run;
        to.out = out_ + at;
        const auto* residual = static_cast<const char*>(epilogue_.residual);
        to.residual = residual ? residual + at : nullptr;
        kernels_.output(to);
      }
      pixel += plan_.pitch - x;
      x = 0;
      ++y;
    }
  }

  const DirectPlan plan_;
  const DirectShape& shape_;
  const DirectKernels& kernels_;
  const int64_t bytes_, part_stride_, block_stride_;
  std::vector<int64_t> taps_;
  const char* x_;
  const uint16_t* packed_;
  const FoldedEpilogue epilogue_;
  char* out_;
};

// Prepares the thread of a piece (the tile registers), and restores the thread's state at the end.
class Configured {
 public:
  explicit Configured(DirectFormat format) : kernels_(direct_kernels(format)) { kernels_.begin(saved_); }
  ~Configured() { kernels_.end(saved_); }
  Configured(const Configured&) = delete;
  Configured& operator=(const Configured&) = delete;

 private:
  const DirectKernels& kernels_;
  alignas(64) char saved_[64];
};

}  // namespace

void direct_loops(DirectPlan plan, const void* x, const uint16_t* packed, const FoldedEpilogue& epilogue, void* out,
                  uint16_t* workspace, Loops& loops) {
  if (plan.shape.in_place()) {
    loops.push_back(direct_in_place(plan.shape, x, packed, epilogue, out, plan.slots));
    return;
  }
  const auto run = std::make_shared<const Run>(std::move(plan), x, packed, epilogue, out);
  const DirectPlan& p = run->plan();
  uint16_t* packed_end = workspace + p.segment * p.segments * (p.split_panels ? 1 : p.slots);
  const auto sums_of = [=, sums = p.sums](int slot) { return reinterpret_cast<float*>(packed_end) + slot * sums; };
  if (!p.split_panels) {
    auto groups = run->groups();
    const auto pieces = static_cast<int64_t>(groups.size());
    loops.push_back({pieces, [=, groups = std::move(groups)](int64_t piece, int slot) {
                       const DirectPlan& p = run->plan();
                       const Configured configured(p.shape.format);
                       const auto& group = groups[piece];
                       uint16_t* memory = workspace + slot * p.segment * p.segments;
                       for (size_t i = 0; i < group.size(); ++i) run->pack(group[i], memory + i * p.segment);
                       run->multiply(group, 0, p.panels, memory, sums_of(slot));
                     }});
    return;
  }
  std::vector<Segment> segments;
  for (int64_t image = 0; image < p.shape.n; ++image) segments.push_back({image, 0, p.shape.p});
  const int64_t phases = static_cast<int64_t>(p.phase_y.size()), rows = run->plane_rows(segments[0]);
  loops.push_back(ranges(p.shape.n * phases * rows, p.slots, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % rows, image = i / rows / phases;
      run->pack(segments[image], i / rows % phases, row, row + 1, workspace + image * run->plan().segment);
    }
  }));
  loops.push_back({p.panels, [=](int64_t panel, int slot) {
                     const Configured configured(run->plan().shape.format);
                     run->multiply(segments, panel, panel + 1, workspace, sums_of(slot));
                   }});
}

}  // namespace resnet_fused::cpu
