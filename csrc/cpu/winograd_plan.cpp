// Every blocking decision of the Winograd convolutions.
#include "winograd.h"
#include "winograd_kernels.h"

namespace resnet_fused::cpu {
const WinogradKernels& winograd_kernels();

WinogradPlan winograd_plan(const WinogradShape& shape, WinogradWeights weights, int threads) {
  WinogradPlan plan{};
  plan.shape = shape;
  plan.weights = weights;
  plan.tiles_h = (shape.out_h() + shape.m - 1) / shape.m;
  plan.tiles_w = (shape.out_w() + shape.m - 1) / shape.m;
  plan.tiles = shape.n * plan.tiles_h * plan.tiles_w;
  plan.tasks = threads;
  plan.rows = winograd_kernels().max_rows;
  plan.block = plan.rows;
  plan.group = 1;
  plan.chunk = weights == WinogradWeights::taps ? (shape.m == 2 ? 128 : 64) : shape.c;
  return plan;
}

}  // namespace resnet_fused::cpu
