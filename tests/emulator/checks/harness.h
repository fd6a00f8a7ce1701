// Code that micro.cpp and faults.cpp share: memory that host and kernel can access, launch-and-wait, and the list of
// checks.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/base/launch.h"
#include "ptx/ptx.cuh"

namespace micro {

using namespace resnet_fused;

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n) {
#ifdef HOST_EMULATION
    data_ = static_cast<T*>(std::aligned_alloc(256, (n * sizeof(T) + 255) / 256 * 256));
#else
    resnet_fused::cuda::check("micro", "cudaMallocManaged", cudaMallocManaged(&data_, n * sizeof(T)));
#endif
    std::memset(static_cast<void*>(data_), 0xEE, n * sizeof(T));
  }
  ~Buffer() {
#ifdef HOST_EMULATION
    std::free(data_);
#else
    cudaFree(data_);
#endif
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  size_t size() const { return n_; }

 private:
  T* data_;
  size_t n_;
};

template <class... Params, class... Args>
void run(void (*kernel)(Params...), resnet_fused::cuda::Grid grid, int block, size_t shared_bytes, Args&&... args) {
  resnet_fused::cuda::launch("micro", kernel, grid, block, shared_bytes, nullptr, std::forward<Args>(args)...);
#ifndef HOST_EMULATION
  resnet_fused::cuda::check("micro", "cudaDeviceSynchronize", cudaDeviceSynchronize());
#endif
}

// Whether the device has Hopper's own instructions. Where it does not, the function prints that.
inline bool on_hopper() {
#ifndef HOST_EMULATION
  int major = 0;
  cuda::check("micro", "compute capability", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  if (major != 9) {
    std::printf("nothing to check: compute capability %d.x has other instructions\n", major);
    return false;
  }
#endif
  return true;
}

inline void expect(bool good, const std::string& what) {
  if (!good) throw std::runtime_error(what);
}
#ifdef HOST_EMULATION
// Expects that the emulator stops `body` with a message that contains `expected`.
template <class Body>
void reported(const Body& body, const std::string& expected) {
  std::string message;
  try {
    body();
  } catch (const emu::Fault& fault) {
    message = fault.what();
  }
  expect(message.find(expected) != std::string::npos, "another message: " + message);
}
#endif

template <class T>
void expect_equal(T got, T want, const char* what, size_t i) {
  if (std::memcmp(&got, &want, sizeof(T)) != 0) {
    throw std::runtime_error(std::string(what) + "[" + std::to_string(i) + "]: " + std::to_string(got) + ", expected " +
                             std::to_string(want));
  }
}

struct Check {
  const char* name;
  std::function<void()> body;
};

// Runs every check under `seeds` seeds and both policies (once on a GPU). Returns the number of failures.
inline int run_all(const std::vector<Check>& checks, int seeds) {
  int failures = 0;
  for (const Check& check : checks) {
    std::string why;
    try {
#ifdef HOST_EMULATION
      for (int s = 0; s < 2 * seeds; ++s) {
        emu::machine.configure(s / 2, s % 2);
        check.body();
      }
#else
      (void)seeds;
      check.body();
#endif
    } catch (const std::exception& error) {
      why = error.what();
      ++failures;
    }
    std::printf("%s %s%s%s\n", why.empty() ? "ok  " : "FAIL", check.name, why.empty() ? "" : ": ", why.c_str());
  }
  return failures;
}

}  // namespace micro
