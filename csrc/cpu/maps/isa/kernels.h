// The kernels that maps.cpp calls: parts of a pass.
#pragma once

#include "cpu/maps/maps.h"

namespace resnet_fused::cpu {

constexpr int64_t kMeanChannels = 32;  // of a part of a mean

// Parts [begin, end) of a pass: kMeanChannels channels of an image for a mean, a pixel for a gate, a row of the output
// for a pool.
struct MapKernels {
  void (*mean)(const MapShape& shape, const void* x, void* out, int64_t begin, int64_t end);
  void (*gate)(const MapShape& shape, const void* x, const void* gate, const void* residual, bool relu, void* out,
               int64_t begin, int64_t end);
  void (*max_pool)(const PoolShape& shape, const void* x, void* out, int64_t begin, int64_t end);
};

}  // namespace resnet_fused::cpu
