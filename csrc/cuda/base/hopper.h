// Checks for the launchers of sources named *_sm90a.cu.
//
// Compute capability 9.0 alone has the instructions of ptx/hopper.cuh, so tools/native_build.py compiles these sources
// for sm_90a alone. On another device a launch would fail with "no kernel image is available".
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/base/launch.h"

namespace resnet_fused::cuda {

constexpr int kMostShared = 227 * 1024;  // bytes of shared memory that a block may have on compute capability 9.0

struct Capability {
  int major, minor;
};

#ifdef HOST_EMULATION
inline Capability capability(const char*) { return {9, 0}; }
#else
inline Capability capability(const char* op) {
  int device = 0;
  Capability found{};
  check(op, "cudaGetDevice", cudaGetDevice(&device));
  check(op, "cudaDeviceGetAttribute", cudaDeviceGetAttribute(&found.major, cudaDevAttrComputeCapabilityMajor, device));
  check(op, "cudaDeviceGetAttribute", cudaDeviceGetAttribute(&found.minor, cudaDevAttrComputeCapabilityMinor, device));
  return found;
}
#endif

// Why `device` cannot run a kernel for Hopper, or "".
inline std::string hopper_refusal(Capability device) {
  if (device.major == 9 && device.minor == 0) return "";
  return "the kernel is for compute capability 9.0, the device has " + std::to_string(device.major) + "." +
         std::to_string(device.minor);
}

// Throws std::runtime_error("<op>: <why>") where the current device cannot run such a kernel.
inline void require_hopper(const char* op) {
  const std::string why = hopper_refusal(capability(op));
  if (!why.empty()) throw std::runtime_error(std::string(op) + ": " + why);
}

}  // namespace resnet_fused::cuda
