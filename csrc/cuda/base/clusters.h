// For the launchers of sources named *_sm90.cu: their instructions (ptx/cluster.cuh) came with compute capability 9.0,
// and every later one has them, so that they are compiled for all of those (tools/native_build.py).
#pragma once

#include "cuda/base/hopper.h"

namespace resnet_fused::cuda {

// Why a device cannot run these kernels, or "".
inline std::string cluster_refusal(Capability device) {
  if (device.major >= 9) return "";
  return "clusters of blocks need compute capability 9.0, but the device has " + std::to_string(device.major) + "." +
         std::to_string(device.minor);
}

// Throws std::runtime_error("<op>: <why>") where the current device is none for these kernels.
inline void require_clusters(const char* op) {
  const std::string why = cluster_refusal(capability(op));
  if (!why.empty()) throw std::runtime_error(std::string(op) + ": " + why);
}

}  // namespace resnet_fused::cuda
