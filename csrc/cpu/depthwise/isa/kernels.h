// The kernels that depthwise/run.cpp calls: some rows of the output.
#pragma once

#include "cpu/depthwise/depthwise.h"

namespace resnet_fused::cpu {

struct DepthwiseRows {
  const DepthwiseShape* shape;
  const void* image;  // of the input
  const float *weight, *shift;
  Pointwise function;
  void* out;           // of the output
  int64_t begin, end;  // the rows that are wanted
};

struct DepthwiseKernels {
  void (*rows[2][2])(const DepthwiseRows&);  // [filter: 3, 5][stride: 1, 2]
};

}  // namespace resnet_fused::cpu
