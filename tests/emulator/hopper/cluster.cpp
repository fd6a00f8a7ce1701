// The barrier of a cluster, in two steps.
#include "emulator/core/machine.h"

namespace emu {

void Machine::cluster_arrive(bool only_reads) {
  const int w = current_->who.warp;
  ClusterBarrier& barrier = cluster_barrier_;
  if ((barrier.arrived | barrier.passed) >> w & 1) fail("cluster_arrive twice without cluster_wait in between");
  barrier.arrived |= 1u << w;
  (only_reads ? barrier.gathering_reads : barrier.gathering).join(shadow.publish(w));
  wake(w);
  pass_cluster_barrier();
}

void Machine::cluster_wait() {
  const int w = current_->who.warp;
  const uint32_t bit = 1u << w;
  ClusterBarrier& barrier = cluster_barrier_;
  if (barrier.passed & bit) {
    barrier.passed &= ~bit;
    acquire_cluster(w);
    wake(w);
  } else if (barrier.arrived & bit) {
    barrier.waiting |= bit;  // the warp stays in its meeting, so that a report of a standstill names it
  } else {
    fail("cluster_wait without cluster_arrive");
  }
}

void Machine::acquire_cluster(int warp) {
  shadow.acquire(warp, cluster_barrier_.clocks);
  shadow.acquire_reads(warp, cluster_barrier_.reads);
}

// The barrier is passed when all warps that still run have arrived. No warp can have arrived for the next time, because
// each waits first.
void Machine::pass_cluster_barrier() {
  ClusterBarrier& barrier = cluster_barrier_;
  if (barrier.arrived == 0) return;
  for (int w = 0; w < warps_running_; ++w) {
    if (warps_[w].alive != 0 && (barrier.arrived >> w & 1) == 0) return;
  }
  barrier.clocks = barrier.gathering;
  barrier.reads = barrier.gathering_reads;
  barrier.passed = barrier.arrived & ~barrier.waiting;
  for (uint32_t left = barrier.waiting; left != 0; left &= left - 1) {
    const int waiter = __builtin_ctz(left);
    acquire_cluster(waiter);
    wake(waiter);
  }
  barrier.gathering = barrier.gathering_reads = Clocks{};
  barrier.arrived = barrier.waiting = 0;
}

}  // namespace emu
