// Launch of pool_linear.
#include "cuda/base/launch.h"
#include "cuda/head/pool_linear.cuh"

namespace resnet_fused::cuda {

namespace {

template <class T, int N>
void launch_head(const HeadPlan& plan, const HeadArgs& args, void* stream) {
  const Grid grid{plan.blocks_k, plan.blocks_n};
  const auto kernel = plan.images == 1 ? pool_linear_kernel<T, N, 1> : pool_linear_kernel<T, N, 4>;
  launch("pool_linear", kernel, grid, kHeadThreads, static_cast<size_t>(plan.shared), stream, args);
}

}  // namespace

void pool_linear(DType dtype, const void* x, const void* weight, const void* bias, void* out, int64_t n, int64_t pixels,
                 int64_t c, int64_t k, void* stream) {
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int kWide = 16 / sizeof(T);
    const bool vector = c % kWide == 0 && aligned(x, 16) && aligned(weight, 16);
    const HeadPlan plan = head_plan(dtype, n, pixels, c, k, vector);
    const HeadArgs args{x,         weight, bias, out, n, pixels, static_cast<int>(c), static_cast<int>(k), plan.outputs,
                        plan.parts};
    vector ? launch_head<T, kWide>(plan, args, stream) : launch_head<T, 1>(plan, args, stream);
  });
}

}  // namespace resnet_fused::cuda
