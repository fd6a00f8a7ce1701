// launch(op, kernel, grid, block, shared_bytes, stream, args...): starts a kernel in either world.
//
// nvcc: cudaLaunchKernel, errors thrown as std::runtime_error("<op>: ..."). g++ -DHOST_EMULATION: runs the kernel to
// its end on this thread (tests/emulator/launch_emulated.h); a fault found by the emulator is thrown the same way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace resnet_fused::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

}  // namespace resnet_fused::cuda

#ifdef HOST_EMULATION
#include "launch_emulated.h"
#else
#include <cuda_runtime.h>

namespace resnet_fused::cuda {

inline void check(const char* op, const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a refused launch is not sticky; leave nothing for the next caller to trip over
  throw std::runtime_error(std::string(op) + ": " + what + ": " + cudaGetErrorString(error));
}

inline int multiprocessors(const char* op) {
  int device = 0, count = 0;
  check(op, "cudaGetDevice", cudaGetDevice(&device));
  check(op, "cudaDeviceGetAttribute", cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), Grid grid, int block, size_t shared_bytes, void* stream,
            Args&&... args) {
  if (shared_bytes > 48 * 1024) {  // more than every kernel may use has to be asked for, per kernel and device
    check(op, "cudaFuncSetAttribute",
          cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)));
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  // Params, not Args: cudaLaunchKernel reads each argument with the kernel's own type.
  [&](Params... params) {
    void* pointers[] = {&params...};
    check(op, "launch",
          cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(static_cast<unsigned>(block)), pointers,
                           shared_bytes, static_cast<cudaStream_t>(stream)));
  }(std::forward<Args>(args)...);
}

}  // namespace resnet_fused::cuda
#endif
