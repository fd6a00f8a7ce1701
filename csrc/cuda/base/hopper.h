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

// Why a kernel whose warpgroups exchange registers (ptx::registers_up) must not run, or "". `found`: registers of a
// thread as the kernel was compiled. The warpgroups that want more wait until others have given up enough. With fewer
// registers at the start that never happens.
inline std::string registers_refusal(int found, int needed) {
  if (found == needed) return "";
  return "the kernel was compiled with " + std::to_string(found) + " registers a thread and needs exactly " +
         std::to_string(needed) + ": build the library with CUDA 13.0";
}

#ifdef HOST_EMULATION
inline void require_registers(const char*, const void*, int) {}
#else
// Throws std::runtime_error("<op>: <why>"). The kernel is asked once per device.
inline void require_registers(const char* op, const void* kernel, int needed) {
  once_per_device(op, kernel, [&](int) {
    cudaFuncAttributes found{};
    check(op, "cudaFuncGetAttributes", cudaFuncGetAttributes(&found, kernel));
    const std::string why = registers_refusal(found.numRegs, needed);
    if (!why.empty()) throw std::runtime_error(std::string(op) + ": " + why);
  });
}
#endif

}  // namespace resnet_fused::cuda
