// Launch of bn_relu.
#include "cuda/base/launch.h"
#include "cuda/norms/bn_relu.cuh"

namespace resnet_fused::cuda {

void bn_relu(Layout layout, const void* x, Epilogue epilogue, void* out, void* stream) {
  const int64_t most = static_cast<int64_t>(multiprocessors("bn_relu")) * 16;
  with_type(layout.dtype, [&](auto element) {
    using T = decltype(element);
    const int width = vector_width<T>(layout, static_cast<const char*>(x), static_cast<const char*>(epilogue.residual),
                                      static_cast<const char*>(out));
    with_walk<T>(layout, width, [&](auto n, auto planes) {
      const Share s = share(layout, n, 4, most);
      launch("bn_relu", bn_relu_kernel<T, n, planes>, {s.tiles, s.chunks}, kWalkThreads, constants_bytes(3), stream, s,
             static_cast<const T*>(x), epilogue.norm, static_cast<const T*>(epilogue.residual), static_cast<T*>(out),
             epilogue.activation);
    });
  });
}

}  // namespace resnet_fused::cuda
