// Launches of bn_relu's backward: the sums in two stages, then the gradients. The stored output is the mask of ReLU.
// Without an activation the output is not read.
#include "cuda/base/launch.h"
#include "cuda/norms/bn_relu_backward.cuh"

namespace resnet_fused::cuda {
namespace {

template <class T>
Gradient<T> gradient(const void* grad, const void* grad2, const void* out, Activation activation) {
  const T* mask = activation == Activation::relu ? static_cast<const T*>(out) : nullptr;
  return {static_cast<const T*>(grad), static_cast<const T*>(grad2), mask};
}

}  // namespace

size_t bn_relu_backward_reduce_scratch(Layout layout) {
  return reduction_scratch(layout, "bn_relu_backward_reduce", GradientSums<1>::kWords);
}

void bn_relu_backward_reduce(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,
                             Norm norm, float* sum_g, float* sum_gx, void* masked, Activation activation, void* scratch,
                             void* stream) {
  const char* op = "bn_relu_backward_reduce";
  float* partial = static_cast<float*>(scratch);
  with_type(layout.dtype, [&](auto element) {
    using T = decltype(element);
    const int width =
        vector_width<T>(layout, static_cast<const char*>(grad), static_cast<const char*>(grad2),
                        static_cast<const char*>(x), static_cast<const char*>(out), static_cast<const char*>(masked));
    with_walk<T>(layout, width, [&](auto n, auto planes) {
      using Partial = GradientSums<Walk<n, planes>::kChannels>;
      const Share s = reduction_share(layout, n, multiprocessors(op));
      launch(op, bn_relu_backward_reduce_kernel<T, n, planes>, {s.tiles, s.chunks}, kWalkThreads,
             merge_bytes<Partial>(kWalkThreads), stream, s, gradient<T>(grad, grad2, out, activation),
             static_cast<const T*>(x), norm, static_cast<T*>(masked), partial);
      launch(op, bn_relu_backward_merge_kernel, {ceil_divide(layout.channels, kMergeWide)}, kMergeThreads,
             merge_bytes<GradientSums<1>>(kMergeThreads), stream, partial, s.chunks, layout.channels, norm, sum_g,
             x == nullptr ? nullptr : sum_gx);
    });
  });
}

void bn_relu_backward_apply(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,
                            Norm norm, const float* sum_g, const float* sum_gx, void* grad_x, void* grad_residual,
                            Activation activation, void* stream) {
  const char* op = "bn_relu_backward_apply";
  if (norm.has_var || grad_x == nullptr) x = nullptr;  // the formula does not contain x then
  const int64_t most = static_cast<int64_t>(multiprocessors(op)) * 16;
  with_type(layout.dtype, [&](auto element) {
    using T = decltype(element);
    const int width = vector_width<T>(layout, static_cast<const char*>(grad), static_cast<const char*>(grad2),
                                      static_cast<const char*>(x), static_cast<const char*>(out),
                                      static_cast<const char*>(grad_x), static_cast<const char*>(grad_residual));
    with_walk<T>(layout, width, [&](auto n, auto planes) {
      const Share s = share(layout, n, 4, most);
      launch(op, bn_relu_backward_apply_kernel<T, n, planes>, {s.tiles, s.chunks}, kWalkThreads, constants_bytes(4),
             stream, s, gradient<T>(grad, grad2, out, activation), static_cast<const T*>(x), norm, sum_g, sum_gx,
             static_cast<float>(layout.count()), static_cast<T*>(grad_x), static_cast<T*>(grad_residual));
    });
  });
}

}  // namespace resnet_fused::cuda
