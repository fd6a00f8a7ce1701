// The loop over the groups and rows of a grouped convolution. A piece copies what it reads of its unit into lines of 16
// channels with zeros around the image, so that the kernel reads neighbouring memory and needs no masks.
#include <algorithm>
#include <cstring>

#include "cpu/base/isa.h"
#include "cpu/grouped/grouped.h"
#include "cpu/grouped/isa/kernels.h"

namespace resnet_fused::cpu {
RESNET_FUSED_PER_ISA_BF16(extern const GroupedKernels grouped_kernels[2];)

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the rows of the output are divided into pieces, and the packed input of a piece: [line][row][column][16].
struct Plan {
  GroupedShape shape;
  int64_t parts;          // pieces of the rows of an image
  int64_t rows, columns;  // of the packed input, at most
  int64_t line;           // bytes of 16 channels
  int64_t bytes;          // of a slot

  Plan(const GroupedShape& s, int slots) : shape(s), line(kGroupedPanel * (s.bf16 ? 2 : 4)) {
    constexpr int64_t kBudget = 128 * 1024, kPerSlot = 4;
    columns = (s.q() - 1) * s.stride + 3;
    const int64_t fit = kBudget / (s.panels() * columns * line * s.stride);
    const int64_t wanted = divide_up(kPerSlot * slots, s.n * s.units());
    parts = std::min(s.p(), std::max(wanted, divide_up(s.p(), std::max<int64_t>(1, fit - 2))));
    rows = (divide_up(s.p(), parts) - 1) * s.stride + 3;
    const int64_t beyond = 2 * kGroupedPixels + 2;  // the last call of a row reads so many lines at most
    bytes = divide_up((s.panels() * rows * columns + beyond) * line, 64) * 64;
  }
};

// Copies the columns of a row of the image: `channels` of each pixel, at most 16.
void pack_row(const Plan& plan, const char* from, int64_t channels, char* to) {
  const GroupedShape& s = plan.shape;
  const int64_t item = plan.line / kGroupedPanel, pixel = s.c * item, bytes = channels * item;
  const int64_t first = std::min(s.padding, plan.columns), last = std::clamp(s.w + s.padding, first, plan.columns);
  std::memset(to, 0, first * plan.line);
  std::memset(to + last * plan.line, 0, (plan.columns - last) * plan.line);
  to += first * plan.line;
  for (int64_t x = first; x < last; ++x, from += pixel, to += plan.line) {
    if (bytes == 64) {
      std::memcpy(to, from, 64);
    } else if (bytes == 32) {
      std::memcpy(to, from, 32);
    } else {
      std::memcpy(to, from, bytes);
    }
  }
}

void run(const Plan& plan, const char* x, const char* weight, const float* shift, Pointwise function, char* out,
         char* memory, int64_t piece) {
  const GroupedShape& s = plan.shape;
  const int64_t part = piece % plan.parts, unit = piece / plan.parts % s.units(),
                image = piece / plan.parts / s.units();
  const int64_t begin = part_begin(s.p(), plan.parts, part), end = part_begin(s.p(), plan.parts, part + 1);
  const int64_t item = s.bf16 ? 2 : 4, channel = s.unit_begin(unit);
  const int64_t row = plan.columns * plan.line, block = plan.rows * row, top = begin * s.stride - s.padding;
  for (int64_t panel = 0; panel < s.panels(); ++panel) {
    const int64_t channels = std::min(kGroupedPanel, s.span() - panel * kGroupedPanel);
    for (int64_t y = 0; y < (end - begin - 1) * s.stride + 3; ++y) {
      char* to = memory + panel * block + y * row;
      if (top + y < 0 || top + y >= s.h) {
        std::memset(to, 0, row);
      } else {
        const int64_t pixel = (image * s.h + top + y) * s.w;
        pack_row(plan, x + (pixel * s.c + channel + panel * kGroupedPanel) * item, channels, to);
      }
    }
  }
  const auto kernel = RESNET_FUSED_BEST_BF16(grouped_kernels)[s.bf16].row[s.stride == 2];
  const int64_t weights = 9 * s.width * kGroupedPanel * item;
  for (int64_t panel = 0; panel < s.panels(); ++panel) {
    const int64_t to = channel + s.panel_begin(panel);
    for (int64_t y = begin; y < end; ++y) {
      kernel({memory + (y - begin) * s.stride * row, row, block, weight + (unit * s.panels() + panel) * weights,
              shift + to, s.width, function, out + ((image * s.p() + y) * s.q() * s.c + to) * item, s.c, s.q()});
    }
  }
}

}  // namespace

int64_t grouped_packed_size(const GroupedShape& s) { return s.units() * s.panels() * 9 * s.width * kGroupedPanel; }

int64_t grouped_workspace_size(const GroupedShape& shape, int slots) { return Plan(shape, slots).bytes * slots; }

Loop grouped_loop(const GroupedShape& shape, const void* x, const void* weight, const float* shift, Pointwise function,
                  void* out, char* workspace, int slots) {
  const Plan plan(shape, slots);
  return {shape.n * shape.units() * plan.parts, [=](int64_t piece, int slot) {
            run(plan, static_cast<const char*>(x), static_cast<const char*>(weight), shift, function,
                static_cast<char*>(out), workspace + slot * plan.bytes, piece);
          }};
}

}  // namespace resnet_fused::cpu
