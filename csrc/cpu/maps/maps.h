// Passes over NHWC maps between the convolutions of a frozen network, as loops of a team. Sums are float32 and rounded
// once. The bits of a result do not depend on threads or batch. No output may overlap an input.
#pragma once

#include <cstdint>

#include "cpu/base/team.h"

namespace resnet_fused::cpu {

struct MapShape {
  int64_t n, h, w, c;
};

// A max-pool; the padding is at most half of the kernel. As in torch a NaN is larger than every number.
struct PoolShape {
  MapShape x;
  int64_t kernel, stride, padding, p, q;
};

// out [n, c] = the mean of all pixels.
Loop map_mean(const MapShape& shape, bool bf16, const void* x, void* out, int slots);
// out = [relu](x * gate [+ residual]). gate: [n, c]; residual: nullptr, or a map.
Loop map_gate(const MapShape& shape, bool bf16, const void* x, const void* gate, const void* residual, bool relu,
              void* out, int slots);
Loop map_max_pool(const PoolShape& shape, bool bf16, const void* x, void* out, int slots);

}  // namespace resnet_fused::cpu
