// What launches ask of the CUDA runtime and the driver, on a runtime that this file is itself: no kernel, no GPU.
//   nvcc -x cu -std=c++17 -cudart none -Icsrc tests/emulator/checks/runtime_checks.cpp -o checks && ./checks
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <thread>

#include "cuda/base/hopper.h"
#include "cuda/base/tensor_map.h"

namespace {

constexpr int kMost = 232448;
int device_now = 0, registers = 168, sets = 0, contexts_bound = 0;
bool context = true;  // whether this thread has one
std::map<std::pair<const void*, int>, int> shared;

[[maybe_unused]] CUresult encode(CUtensorMap* map, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (!context) return CUDA_ERROR_INVALID_CONTEXT;
  std::memset(map, 7, sizeof(*map));
  return CUDA_SUCCESS;
}

}  // namespace

#ifndef __CUDA_ARCH__  // where nvcc compiles for a GPU it has its own
extern "C" {
void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
cudaError_t cudaGetDevice(int* device) { return *device = device_now, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return context = true, ++contexts_bound, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? kMost : 0;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  shared[{kernel, device_now}] = value;
  return ++sets, cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  found->numRegs = registers;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return cudaSuccess; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(encode), *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
}
#endif

namespace {

using namespace resnet_fused;

void expect(bool right, const char* what) {
  if (right) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

void kernel(int) {}
void other(int) {}

void shared_memory() {
  const auto bytes = [](void (*k)(int)) { return shared[{reinterpret_cast<const void*>(k), device_now}]; };
  cuda::launch("op", kernel, {1}, 32, 48 * 1024, nullptr, 1);
  expect(sets == 0, "48 KiB need no question");
  cuda::launch("op", kernel, {1}, 32, 200000, nullptr, 1);
  cuda::launch("op", kernel, {1}, 32, 100000, nullptr, 1);
  expect(bytes(kernel) == kMost, "a smaller launch has lowered what a larger one needs");
  expect(sets == 1, "one question for a kernel");
  cuda::launch("op", other, {1}, 32, 100000, nullptr, 1);
  expect(bytes(other) == kMost && sets == 2, "each kernel asks");
  device_now = 1;
  cuda::launch("op", kernel, {1}, 32, 100000, nullptr, 1);
  expect(bytes(kernel) == kMost && sets == 3, "each device is asked");
  device_now = 0;
}

void tensor_maps() {
  const auto map = [] { return cuda::matrix_map("op", {nullptr, DType::f16, 64, 64, 128, 64}).opaque[0] != 0; };
  expect(map() && contexts_bound == 0, "a map of a thread with a context");
  context = false;
  expect(map() && contexts_bound == 1, "a map of a thread without a context");
}

void exchanged_registers() {
  const auto ask = [](void (*k)(int)) {
    try {
      cuda::require_registers("op", reinterpret_cast<const void*>(k), 168);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  expect(ask(kernel).empty(), "168 registers");
  registers = 160;
  const std::string why =
      "op: the kernel was compiled with 160 registers a thread and needs exactly 168: build the library with CUDA 13.0";
  expect(ask(other) == why && ask(other) == why, "160 registers, each time");
}

}  // namespace

int main() {
  shared_memory();
  tensor_maps();
  exchanged_registers();
  std::printf("ok\n");
}
