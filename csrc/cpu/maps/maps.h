// Passes over NHWC maps between the convolutions of a frozen network. Sums are float32 and rounded once. The bits of a
// result do not depend on threads or batch. No output may overlap an input.
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

struct MapShape {
  int64_t n, h, w, c;
};

// A max-pool; the padding is at most half of the kernel. As in torch a NaN is larger than every number.
struct PoolShape {
  MapShape x;
  int64_t kernel, stride, padding, p, q;
};

#define RESNET_FUSED_MAPS                                                                                           \
  /* out [n, c] = the mean of all pixels. */                                                                        \
  void map_mean(const MapShape& shape, bool bf16, const void* x, void* out);                                        \
  /* out = [relu](x * gate [+ residual]). gate: [n, c]; residual: nullptr, or a map. */                             \
  void map_gate(const MapShape& shape, bool bf16, const void* x, const void* gate, const void* residual, bool relu, \
                void* out);                                                                                         \
  void map_max_pool(const PoolShape& shape, bool bf16, const void* x, void* out);

RESNET_FUSED_MAPS

}  // namespace resnet_fused::cpu
