// One CUDA block, or one cluster of them, at a time: threads as fibers, a seeded scheduler, warp-wide meetings and
// barriers.
//
// Threads run until they reach a point where threads meet. Which one runs next is drawn from the seed under one of two
// policies: 0 picks any ready warp; 1 runs the warp of highest priority as far as it can and redraws priorities now and
// then, so that warps drift apart as far as the barriers allow (uniform picks keep them in step and hide missing
// barriers). Inside a warp the lanes run in random order. Blocks run one after another, in random order; those of a
// cluster together, their warps in one count.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/core/fiber.h"
#include "emulator/core/shadow.h"
#include "emulator/hopper/early.h"
#include "emulator/hopper/hopper.h"

namespace emu {

constexpr uint32_t kFullWarp = 0xffffffffu;

struct Random {
  uint64_t state = 1;
  uint32_t next() {  // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((static_cast<uint64_t>(next()) * n) >> 32); }
};

struct Dim {
  int64_t x = 1, y = 1, z = 1;
};

// A cp.async on its way; `data` was read when it was issued and lands when the thread waits for its group.
struct Copy {
  uint32_t dst;
  int bytes;
  uint32_t data[4];
};

struct Lane {
  Fiber fiber;
  Who who;
  bool waited;                            // for the kernels before
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;                 // not committed
};

struct Warp {
  uint32_t ready, alive;
  uint32_t met;         // lanes that have arrived at `meeting`
  const char* meeting;  // the instruction they wait in
  void* operands[32];
  uint32_t priority;
};

struct Barrier {
  int expected, arrived;
  uint32_t waiting;  // warps
  Clocks clocks;
};

// The warps that have arrived at a cluster's barrier (`arrived`), and those that have not waited yet since the barrier
// was passed (`passed`).
struct ClusterBarrier {
  uint32_t arrived, passed, waiting;  // warps
  Clocks gathering, clocks;
};

// How a kernel is launched besides its grid: see launch.h.
struct How {
  Dim cluster;
  bool early = false;
};

class Machine {
 public:
  // Seed and policy (-1: drawn per block) of what follows; launches are numbered from here, same seed = same schedule.
  void configure(uint64_t seed, int policy);
  int multiprocessors = 3;  // few, so that grids stride and partial results are many for each block

  // Runs `body(context)` in every thread of every block. Throws Fault.
  void run(const std::string& op, Dim grid, int block, size_t shared_bytes, void (*body)(const void*),
           const void* context, How how = {});

  // The rest is called by the instructions, inside a fiber.
  Lane& lane() { return *current_; }
  Warp& warp() { return warps_[current_->who.warp]; }
  Shadow shadow;
  Early early;  // global memory of a kernel that starts before the one ahead has ended
  Dim grid;
  int threads = 0, blocks = 0;  // of a block; of a cluster
  int rank() const { return current_->who.warp / block_warps_; }
  const Dim& block_index() const { return block_indices_[rank()]; }
  int block_warp() const { return current_->who.warp % block_warps_; }

  // Every lane of the warp comes here with the same `name`; true for the last one, which works for all and then calls
  // release(); the others have slept until then.
  bool meet(const char* name, void* operand);
  void release(int warp) { wake(warp); }
  // The whole warp arrives at a barrier of `expected` threads (after meet()).
  void arrive(int id, int expected, bool wait);
  void pause();
  // The whole warp arrives at the cluster's barrier, waits there (after meet()).
  void cluster_arrive();
  void cluster_wait();
  // One lane alone waits for something that `wake_lane` reports; `what`: the instruction.
  void sleep(const char* what);
  void wake_lane(Who who);
  Random& random() { return random_; }
  Hopper hopper;  // barriers in memory, bulk copies, asynchronous products

  [[noreturn]] void fail(const std::string& why);

 private:
  void place(Dim cluster, int64_t number);
  void run_cluster();
  void pass_cluster_barrier();
  Lane& next();
  void wake(int warp);
  void thread_ends();
  std::string standstill() const;
  static void entry();

  std::mutex one_at_a_time_;
  uint64_t seed_ = 0, launches_ = 0;
  int wanted_policy_ = -1, policy_ = 0;
  Random random_;
  std::vector<Lane> lanes_ = std::vector<Lane>(1024);  // their stacks come with first use
  Warp warps_[kMaxWarps];
  Barrier barriers_[kMaxWarps][16];  // of each block
  ClusterBarrier cluster_barrier_;
  std::vector<Dim> block_indices_;
  int block_warps_ = 1, warps_running_ = 0;  // of a block; of the cluster
  int left_[kMaxWarps];                      // threads of each block that have not ended
  uint32_t ready_warps_ = 0;
  Lane* current_ = nullptr;
  int sleepers_ = 0;
  const char* sleep_in_ = nullptr;
  int running_ = 0;
  std::string fault_;
  bool faulted_ = false;
  void (*body_)(const void*) = nullptr;
  const void* context_ = nullptr;
};

extern Machine machine;

// A warp-wide instruction: `complete(T* const (&operands)[32])` runs once, in the last lane to arrive.
template <class T, class Complete>
void collective(const char* name, T& operand, Complete complete) {
  if (machine.meet(name, &operand)) {
    complete(reinterpret_cast<T* const(&)[32]>(machine.warp().operands));
    machine.release(machine.lane().who.warp);
  }
  machine.pause();
}

}  // namespace emu
