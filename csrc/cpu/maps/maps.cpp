// The loops of the passes of maps.h, by the kernels of the instruction set in use.
#include "cpu/maps/maps.h"

#include "cpu/base/isa.h"
#include "cpu/maps/isa/kernels.h"

namespace resnet_fused::cpu {
RESNET_FUSED_PER_ISA(extern const MapKernels map_kernels[2];)

Loop map_mean(const MapShape& shape, bool bf16, const void* x, void* out, int slots) {
  const auto run = RESNET_FUSED_BEST(map_kernels)[bf16].mean;
  const int64_t parts = shape.n * ((shape.c + kMeanChannels - 1) / kMeanChannels);
  return ranges(parts, slots, [=](int64_t begin, int64_t end) { run(shape, x, out, begin, end); });
}

Loop map_gate(const MapShape& shape, bool bf16, const void* x, const void* gate, const void* residual, bool relu,
              void* out, int slots) {
  const auto run = RESNET_FUSED_BEST(map_kernels)[bf16].gate;
  return ranges(shape.n * shape.h * shape.w, slots,
                [=](int64_t begin, int64_t end) { run(shape, x, gate, residual, relu, out, begin, end); });
}

Loop map_max_pool(const PoolShape& shape, bool bf16, const void* x, void* out, int slots) {
  const auto run = RESNET_FUSED_BEST(map_kernels)[bf16].max_pool;
  return ranges(shape.x.n * shape.p, slots, [=](int64_t begin, int64_t end) { run(shape, x, out, begin, end); });
}

}  // namespace resnet_fused::cpu
