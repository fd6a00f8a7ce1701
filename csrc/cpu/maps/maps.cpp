// Each pass of maps.h by the function that is compiled for the instruction set in use.
#include "cpu/maps/maps.h"

#include "cpu/base/isa.h"

namespace resnet_fused::cpu {
RESNET_FUSED_PER_ISA(RESNET_FUSED_MAPS)

void map_mean(const MapShape& shape, bool bf16, const void* x, void* out) {
  RESNET_FUSED_BEST(map_mean)(shape, bf16, x, out);
}

void map_gate(const MapShape& shape, bool bf16, const void* x, const void* gate, const void* residual, bool relu,
              void* out) {
  RESNET_FUSED_BEST(map_gate)(shape, bf16, x, gate, residual, relu, out);
}

void map_max_pool(const PoolShape& shape, bool bf16, const void* x, void* out) {
  RESNET_FUSED_BEST(map_max_pool)(shape, bf16, x, out);
}

}  // namespace resnet_fused::cpu
