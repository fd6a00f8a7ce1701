// The instructions of csrc/ptx/cluster.cuh on the emulated machine.
#pragma once

#include "emulator/core/machine.h"

namespace resnet_fused::ptx {

inline int cluster_rank() { return machine.rank(); }
inline void cluster_arrive() {
  int nothing = 0;
  if (machine.meet("cluster_arrive", &nothing)) machine.cluster_arrive(false);
  machine.pause();
}
inline void cluster_arrive_reads() {
  int nothing = 0;
  if (machine.meet("cluster_arrive_reads", &nothing)) machine.cluster_arrive(true);
  machine.pause();
}
inline void cluster_wait() {
  int nothing = 0;
  if (machine.meet("cluster_wait", &nothing)) machine.cluster_wait();
  machine.pause();
}
inline uint32_t cluster_address(uint32_t addr, int rank) {
  if (rank < 0 || rank >= machine.blocks) machine.fail("cluster_address of block " + std::to_string(rank));
  if (addr >= emu::kThere) machine.fail("cluster_address of an address of a cluster");
  return addr + emu::kThere * static_cast<uint32_t>(rank + 1);
}
template <class T>
T ld_cluster(uint32_t addr) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "ld_cluster: 4, 8, 16 bytes");
  constexpr const char* kName = "ld.shared::cluster";
  machine.shadow.read(kName, addr, sizeof(T), machine.lane().who);
  T value;
  std::memcpy(&value, machine.shadow.at(kName, addr, sizeof(T), machine.lane().who), sizeof(T));
  return value;
}

inline void grid_wait() { machine.early.wait(); }
inline void grid_trigger() { machine.early.trigger(); }
inline void prefetch_l2(const void* p) {
  // lets AddressSanitizer check the address
  [[maybe_unused]] volatile char touched = *static_cast<const volatile char*>(p);
}

}  // namespace resnet_fused::ptx
