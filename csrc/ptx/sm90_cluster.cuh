// Compute capability 9.0 and later: each instruction of cluster.cuh as inline PTX.
#pragma once

#include "ptx/cluster.cuh"

namespace resnet_fused::ptx {

#define PTX_FN static __device__ __forceinline__

PTX_FN int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
PTX_FN void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
// ptxas (13.0) makes a MEMBAR.ALL.GPU of the release above: the thread then waits for its stores to global memory too.
// Without a release it does not. A read is done when its value has been used, and loads are issued in order.
PTX_FN void cluster_arrive_reads() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
PTX_FN void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
PTX_FN uint32_t cluster_address(uint32_t addr, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(addr), "r"(rank));
  return there;
}
template <class T>
PTX_FN T ld_cluster(uint32_t addr) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "ld_cluster: 4, 8, 16 bytes");
  if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(addr) : "memory");
    return bit_cast<T>(v);
  } else if constexpr (sizeof(T) == 8) {
    Words2 v;
    asm volatile("ld.shared::cluster.v2.u32 {%0, %1}, [%2];" : "=r"(v.w[0]), "=r"(v.w[1]) : "r"(addr) : "memory");
    return bit_cast<T>(v);
  } else {
    Words4 v;
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                 : "r"(addr)
                 : "memory");
    return bit_cast<T>(v);
  }
}

PTX_FN void grid_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
PTX_FN void grid_trigger() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
PTX_FN void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p))); }

#undef PTX_FN

}  // namespace resnet_fused::ptx
