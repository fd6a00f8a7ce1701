// Checks for the launchers of sources named *_sm90.cu. These sources use ptx/cluster.cuh. Compute capability 9.0
// introduced its instructions, and every later capability has them. tools/native_build.py therefore compiles these
// sources for 9.0 and later.
#pragma once

#include "cuda/base/hopper.h"

namespace resnet_fused::cuda {

// Why `device` cannot run a kernel that uses clusters, or "".
inline std::string cluster_refusal(Capability device) {
  if (device.major >= 9) return "";
  return "clusters of blocks need compute capability 9.0, but the device has " + std::to_string(device.major) + "." +
         std::to_string(device.minor);
}

// Throws std::runtime_error("<op>: <why>") where the current device cannot run such a kernel.
inline void require_clusters(const char* op) {
  const std::string why = cluster_refusal(capability(op));
  if (!why.empty()) throw std::runtime_error(std::string(op) + ": " + why);
}

}  // namespace resnet_fused::cuda
