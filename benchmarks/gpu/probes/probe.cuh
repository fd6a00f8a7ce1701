// What the probes share: errors, the clock, and where they run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

// Seconds that `launch()` takes on the default stream: the best of five after a warm-up.
template <class Launch>
double seconds(Launch launch, cudaStream_t stream = nullptr) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start), "event"), check(cudaEventCreate(&end), "event");
  double best = 1e30;
  for (int i = 0; i < 6; ++i) {
    check(cudaEventRecord(start, stream), "record");
    launch();
    check(cudaEventRecord(end, stream), "record");
    check(cudaEventSynchronize(end), "run");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, end), "elapsed");
    if (i > 0 && ms * 1e-3 < best) best = ms * 1e-3;
  }
  return best;
}

// The multiprocessors of a device of compute capability 9.0; elsewhere a line that says so, and the program ends.
inline int multiprocessors_of_hopper(const char* probe) {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  if (device.major != 9) {
    std::printf("{\"case\": \"%s\", \"skipped\": \"this is compute capability %d.%d, not 9.0\"}\n", probe, device.major,
                device.minor);
    std::exit(0);
  }
  return device.multiProcessorCount;
}

inline __device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
