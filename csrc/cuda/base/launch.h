// launch(op, kernel, grid, block, shared_bytes, stream, args...) starts a kernel, with nvcc and in the emulator.
// launch_clusters starts a kernel whose blocks form clusters.
//
// nvcc: launch calls cudaLaunchKernel and throws an error as std::runtime_error("<op>: ..."). g++ -DHOST_EMULATION:
// launch runs the kernel to its end on this thread (tests/emulator/core/launch_emulated.h) and throws a fault that the
// emulator finds in the same way.
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
#include "emulator/core/launch_emulated.h"
#else
#include <cuda_runtime.h>

#include <mutex>
#include <set>

namespace resnet_fused::cuda {

inline void check(const char* op, const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // this call clears the error: the next caller must not see it
  throw std::runtime_error(std::string(op) + ": " + what + ": " + cudaGetErrorString(error));
}

inline int multiprocessors(const char* op) {
  int device = 0, count = 0;
  check(op, "cudaGetDevice", cudaGetDevice(&device));
  check(op, "cudaDeviceGetAttribute", cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Runs action(device) once per kernel and device. Another thread that asks meanwhile waits for the end of the action.
// After an error the next call runs the action again.
template <class Action>
void once_per_device(const char* op, const void* kernel, Action action) {
  static std::mutex mutex;  // each action has a type of its own, and so its own mutex and set
  static std::set<std::pair<const void*, int> > done;
  int device = 0;
  check(op, "cudaGetDevice", cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  if (done.count({kernel, device})) return;
  action(device);
  done.insert({kernel, device});
}

// A kernel that needs more than 48 KiB has to ask for it. It asks for the most that the device gives, and not for the
// bytes of one launch: another thread could lower that number before this thread launches.
inline void ask_for_shared(const char* op, const void* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return;
  once_per_device(op, kernel, [&](int device) {
    int most = 0;
    check(op, "cudaDeviceGetAttribute", cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(op, "cudaFuncSetAttribute", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  });
}

template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), Grid grid, int block, size_t shared_bytes, void* stream,
            Args&&... args) {
  ask_for_shared(op, reinterpret_cast<const void*>(kernel), shared_bytes);
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  // cudaLaunchKernel reads each argument with the type of the kernel's parameter, hence Params and not Args
  [&](Params... params) {
    void* pointers[] = {&params...};
    check(op, "launch",
          cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(static_cast<unsigned>(block)), pointers,
                           shared_bytes, static_cast<cudaStream_t>(stream)));
  }(std::forward<Args>(args)...);
}

// Starts a kernel in clusters of `cluster` blocks, and starts it early: its blocks may start when all blocks of the
// kernel before it in the stream have triggered or ended. The kernel follows the rule in ptx/cluster.cuh. A graph that
// captures the stream keeps this dependency. It needs compute capability 9.0 or later.
template <class... Params, class... Args>
void launch_clusters(const char* op, void (*kernel)(Params...), Grid grid, Grid cluster, int block, size_t shared_bytes,
                     void* stream, Args&&... args) {
  ask_for_shared(op, reinterpret_cast<const void*>(kernel), shared_bytes);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster.x), static_cast<unsigned>(cluster.y),
                                  static_cast<unsigned>(cluster.z)};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = 2;
  [&](Params... params) {
    void* pointers[] = {&params...};
    check(op, "launch", cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers));
  }(std::forward<Args>(args)...);
}

}  // namespace resnet_fused::cuda
#endif
