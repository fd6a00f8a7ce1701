// launch_together(op, kernel, blocks, size, block, shared_bytes, stream, args...) starts a kernel in clusters of `size`
// neighbouring blocks. The kernel starts after the kernel before it has ended, so its threads need no grid_wait
// (launch_clusters starts early). It needs compute capability 9.0 or later.
#pragma once

#include "cuda/base/launch.h"

namespace resnet_fused::cuda {

#ifdef HOST_EMULATION
template <class... Params, class... Args>
void launch_together(const char* op, void (*kernel)(Params...), int64_t blocks, int size, int block,
                     size_t shared_bytes, void*, Args&&... args) {
  launch_as({{size}, false}, op, kernel, {blocks}, block, shared_bytes, std::forward<Args>(args)...);
}
#else
template <class... Params, class... Args>
void launch_together(const char* op, void (*kernel)(Params...), int64_t blocks, int size, int block,
                     size_t shared_bytes, void* stream, Args&&... args) {
  ask_for_shared(op, reinterpret_cast<const void*>(kernel), shared_bytes);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  [&](Params... params) {
    void* pointers[] = {&params...};
    check(op, "launch", cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers));
  }(std::forward<Args>(args)...);
}
#endif

}  // namespace resnet_fused::cuda
