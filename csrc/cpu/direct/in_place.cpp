// 1x1 convolutions of stride 1: nothing is copied, and no sum goes through memory.
#include <algorithm>

#include "cpu/base/isa.h"
#include "cpu/direct/direct.h"
#include "cpu/direct/isa/kernels.h"

namespace resnet_fused::cpu {

Loop direct_in_place(const DirectShape& shape, const void* x, const uint16_t* packed, const FoldedEpilogue& epilogue,
                     void* out, int slots) {
  const auto& kernels = direct_kernels(shape.format);
  constexpr int64_t kUnit = 14, kPerSlot = 4;
  const int64_t pixels = shape.n * shape.p * shape.q, units = (pixels + kUnit - 1) / kUnit;
  const int64_t panels = (shape.k + kDirectPanel - 1) / kDirectPanel;
  // Where the weights are larger than the map, or the pixels are few, the threads share out the filters.
  const int64_t values = pixels * shape.c * (shape.is_bf16() ? 1 : 2);
  const bool by_panels = panels >= slots && (units < slots || direct_packed_size(shape) > 2 * values);
  const int64_t parts = by_panels ? 1 : std::min(units, kPerSlot * slots);
  const int64_t panel_parts = by_panels ? std::min(panels, kPerSlot * slots) : 1;
  return {parts * panel_parts, [=, &kernels](int64_t piece, int) {
            const int64_t item = shape.is_bf16() ? 2 : 4, part = piece / panel_parts;
            const int64_t end = std::min(pixels, part_begin(units, parts, part + 1) * kUnit);
            const int64_t first_panel = part_begin(panels, panel_parts, piece % panel_parts);
            const int64_t last_panel = part_begin(panels, panel_parts, piece % panel_parts + 1);
            for (int64_t pixel = part_begin(units, parts, part) * kUnit; pixel < end; pixel += kernels.pixels) {
              for (int64_t panel = first_panel; panel < last_panel; ++panel) {
                const int64_t k = panel * kDirectPanel, at = (pixel * shape.k + k) * item;
                const auto* residual = static_cast<const char*>(epilogue.residual);
                kernels.in_place({static_cast<const char*>(x) + pixel * shape.c * item,
                                  packed + panel * shape.blocks() * kDirectPanel * kDirectLine, epilogue.shift + k,
                                  residual ? residual + at : nullptr, static_cast<char*>(out) + at, shape.c, shape.k,
                                  std::min(kernels.pixels, end - pixel), std::min(kDirectPanel, shape.k - k),
                                  epilogue.activation});
              }
            }
          }};
}

}  // namespace resnet_fused::cpu
