// What a kernel for compute capability 9.0 could count on, one JSON object a line:
//   nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a benchmarks/gpu/probes/bandwidth.cu -o bandwidth && ./bandwidth
//
// - bytes/s from L2 into shared memory by bulk copies, each block its own copy, and with each half sent to both blocks
// of a
//   cluster (multicast): convolutions that read a tile nine times are bound by this. A lower bound: the copies drain
//   after every 192 KiB.
// - seconds per grid-wide barrier: what a kernel of several layers would pay between two of them.
//
// Not part of the library, so the PTX is here. The sources of a copy are random bits; nothing is computed.
#include <cooperative_groups.h>

#include <vector>

#include "probe.cuh"

namespace {

constexpr int kStages = 6, kStageBytes = 32 << 10, kRounds = 200;
constexpr size_t kWindow = 16 << 20;  // read again and again: stays in L2 (50 MB on H100, 60 MB on H200)

__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::
          "r"(barrier),
      "r"(parity)
      : "memory");
}

// One warp a block. Every round fills all stages, waits for them and meets the other block of the cluster.
template <bool Multicast>
__global__ void __cluster_dims__(2, 1, 1) copies(const char* source) {
  extern __shared__ __align__(128) char buffer[];
  __shared__ __align__(8) uint64_t barriers[kStages];
  const uint32_t rank = blockIdx.x % 2;
  if (threadIdx.x == 0) {
    for (uint64_t& b : barriers) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&b)));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  for (int round = 0; round < kRounds; ++round) {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) {
        const uint32_t barrier = shared_address(&barriers[s]);
        uint32_t target = shared_address(buffer) + s * kStageBytes;
        const size_t tile = (Multicast ? blockIdx.x / 2 : blockIdx.x) + size_t(gridDim.x) * (round * kStages + s);
        const char* from = source + tile * kStageBytes % kWindow;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(kStageBytes)
                     : "memory");
        if constexpr (Multicast) {
          const uint32_t half = kStageBytes / 2;
          target += rank * half;
          from += rank * half;
          asm volatile(
              "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
              " [%0], [%1], %2, [%3], %4;" ::"r"(target),
              "l"(from), "r"(half), "r"(barrier), "h"(uint16_t(3))
              : "memory");
        } else {
          asm volatile(
              "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
              "l"(from), "r"(kStageBytes), "r"(barrier)
              : "memory");
        }
      }
    }
    for (int s = 0; s < kStages; ++s) wait(shared_address(&barriers[s]), round & 1);
    cluster_sync();
  }
}

__global__ void barriers_only(int count) {
  for (int i = 0; i < count; ++i) cooperative_groups::this_grid().sync();
}

template <bool Multicast>
void measure_copies(const char* name, const char* source, int blocks) {
  const int shared = kStages * kStageBytes;
  check(cudaFuncSetAttribute(copies<Multicast>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "attribute");
  const double s = seconds([&] {
    copies<Multicast><<<blocks, 32, shared>>>(source);
    check(cudaGetLastError(), "launch");
  });
  std::printf("{\"case\": \"%s\", \"bytes_per_second\": %.4g}\n", name,
              double(blocks) * kRounds * kStages * kStageBytes / s);
}

}  // namespace

int main() {
  const int blocks = multiprocessors_of_hopper("L2 to shared memory") / 2 * 2;
  std::vector<uint32_t> values(kWindow / 4);
  uint32_t state = 1;
  for (uint32_t& v : values) v = state = state * 1664525u + 1013904223u;
  char* source;
  check(cudaMalloc(&source, kWindow), "malloc");
  check(cudaMemcpy(source, values.data(), kWindow, cudaMemcpyHostToDevice), "memcpy");
  measure_copies<false>("L2 to shared memory", source, blocks);
  measure_copies<true>("L2 to shared memory, multicast to 2", source, blocks);
  int count = 1000;
  void* arguments[] = {&count};
  const double s = seconds([&] {
    check(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(barriers_only), blocks, 128, arguments, 0, nullptr),
          "cooperative launch");
  });
  std::printf("{\"case\": \"grid barrier\", \"seconds\": %.4g}\n", s / count);
  check(cudaFree(source), "free");
  return 0;
}
