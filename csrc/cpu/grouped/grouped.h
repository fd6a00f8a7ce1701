// Grouped 3x3 convolution of NHWC activations: out = f(conv(x, weight) + shift), summed in float32 and rounded once. A
// group has as many outputs as inputs: 4, 8, or an even number from 16 on. Stride 1 or 2, any padding, no dilation.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/base/pointwise.h"
#include "cpu/base/team.h"
#include "ops.h"

namespace resnet_fused::cpu {

// Output channels of a kernel call, and input channels of a packed line.
constexpr int64_t kGroupedPanel = 16;

struct GroupedShape {
  int64_t n, h, w, c, width, stride, padding;  // c: channels of the map. width: channels of a group
  bool bf16;
  int64_t p() const { return out_size(h, 3, stride, padding, 1); }
  int64_t q() const { return out_size(w, 3, stride, padding, 1); }
  // A unit is what shares its input: a group, or a panel of some small groups.
  bool is_small() const { return width < kGroupedPanel; }
  int64_t span() const { return std::max(width, kGroupedPanel); }  // channels of a unit
  int64_t units() const { return (c + span() - 1) / span(); }
  int64_t panels() const { return (span() + kGroupedPanel - 1) / kGroupedPanel; }  // of a unit
  // The first channel. The last unit or panel may overlap the one before it: both write the same values.
  int64_t unit_begin(int64_t unit) const { return std::min(unit * span(), c - span()); }
  int64_t panel_begin(int64_t panel) const { return std::min(panel * kGroupedPanel, span() - kGroupedPanel); }
};

// Whether there is a kernel for the channels and the stride.
constexpr bool grouped_is_able(int64_t c, int64_t width, int64_t stride) {
  const bool small = width == 4 || width == 8, large = width >= kGroupedPanel && width % 2 == 0;
  return (small || large) && c >= kGroupedPanel && c % width == 0 && (stride == 1 || stride == 2);
}

// Values of the packed weights, which have the dtype of x: [unit][panel][row of the filter][channel of the group]
// [column of the filter][16 filters]. In bfloat16 two neighbouring channels stand after the filters as pairs.
int64_t grouped_packed_size(const GroupedShape& shape);
// Bytes.
int64_t grouped_workspace_size(const GroupedShape& shape, int slots);

// x and out: float32 or bfloat16; out must not be x. shift: [c]. workspace is aligned to 64 bytes. The bits of the
// result do not depend on threads, batch or position. An output is NaN where a pixel of its group that it reads is NaN.
Loop grouped_loop(const GroupedShape& shape, const void* x, const void* weight, const float* shift, Pointwise function,
                  void* out, char* workspace, int slots);

}  // namespace resnet_fused::cpu
