// The kernels that grouped/run.cpp calls: a row of the output for 16 filters.
#pragma once

#include "cpu/grouped/grouped.h"

namespace resnet_fused::cpu {

constexpr int kGroupedPixels = 14;  // of the output, at most, computed together

struct GroupedRow {
  const void* lines;   // of the first row and pixel that are read
  int64_t row, block;  // bytes from a row of lines to the next, and to the next 16 channels
  const void* weight;  // of the panel
  const float* shift;  // of the panel
  int64_t width;       // channels of a group
  Pointwise function;
  void* out;
  int64_t pixel, pixels;  // values from a pixel of the output to the next, and number of pixels
};

struct GroupedKernels {
  void (*row[2])(const GroupedRow&);  // [stride: 1, 2]
};

}  // namespace resnet_fused::cpu
