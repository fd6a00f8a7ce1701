// How pool_linear divides its work: pure functions of the shape.
//
// A block pools `images` images into shared memory and multiplies them with `outputs` rows of the weight. Every block
// of the same images pools them again, and every block of the same outputs reads the same rows of the weight again. The
// plan takes the division with the least traffic.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace resnet_fused::cuda {

inline constexpr int kHeadThreads = 128, kHeadWarps = kHeadThreads / 32;
inline constexpr int kHeadRows = 4;  // outputs of a warp at a time: four products use each value from shared memory
inline constexpr int kHeadStep = kHeadWarps * kHeadRows;
inline constexpr int kHeadImages[] = {1, 4};
inline constexpr int kHeadShared = 96 * 1024;  // bytes, a little less than every supported GPU grants a block
inline constexpr int kHeadProcessors = 132;    // as in ConvModel: one shape has one plan on every GPU

struct HeadPlan {
  int images;   // images of a block
  int outputs;  // outputs of a block, a multiple of kHeadStep
  int parts;    // threads that share the pixels of one channel vector
  int64_t blocks_n, blocks_k;
  int shared;       // bytes: float32 [parts, images, c]
  int64_t traffic;  // bytes that the busiest multiprocessor reads
};

inline HeadPlan head_plan_for(int images, int64_t outputs, DType dtype, int64_t n, int64_t pixels, int64_t c, int64_t k,
                              bool vector) {
  const int64_t element = dtype == DType::f32 ? 4 : 2, vectors = vector ? c * element / 16 : c;
  HeadPlan plan;
  plan.images = images;
  plan.outputs = static_cast<int>((outputs + kHeadStep - 1) / kHeadStep * kHeadStep);
  plan.blocks_n = (n + images - 1) / images, plan.blocks_k = (k + plan.outputs - 1) / plan.outputs;
  // with few channels several threads share the pixels of a vector
  const int64_t spare = kHeadThreads / (images * vectors);
  plan.parts = static_cast<int>(spare < 1 ? 1 : spare < pixels ? spare : pixels);
  const int64_t shared = plan.parts * images * c * 4;
  plan.shared = static_cast<int>(shared < INT32_MAX ? shared : INT32_MAX);
  const int64_t busiest = (plan.blocks_n * plan.blocks_k + kHeadProcessors - 1) / kHeadProcessors;
  plan.traffic = busiest * (images * pixels + plan.outputs) * c * element;
  return plan;
}

inline HeadPlan head_plan(DType dtype, int64_t n, int64_t pixels, int64_t c, int64_t k, bool vector) {
  if (c * 4 > kHeadShared) {
    throw std::runtime_error("pool_linear: takes up to " + std::to_string(kHeadShared / 4) + " channels, got " +
                             std::to_string(c));
  }
  HeadPlan best = head_plan_for(1, kHeadStep, dtype, n, pixels, c, k, vector);
  for (const int images : kHeadImages) {
    for (int64_t outputs = kHeadStep; outputs < 2 * k; outputs *= 2) {
      const HeadPlan plan = head_plan_for(images, outputs, dtype, n, pixels, c, k, vector);
      if (plan.shared <= kHeadShared && plan.traffic < best.traffic) best = plan;
    }
  }
  if (best.blocks_n > 65535) {
    throw std::runtime_error("pool_linear: takes up to " + std::to_string(65535 * best.images) +
                             " images of this shape, got " + std::to_string(n));
  }
  return best;
}

}  // namespace resnet_fused::cuda
