// The emulated machine runs one CUDA block, or one cluster of blocks, at a time: threads as fibers, a seeded scheduler,
// warp-wide instructions and barriers.
//
// A thread runs until it reaches a point where threads meet. The seed then decides which thread runs next, under one of
// two policies. Policy 0 picks any ready warp. Policy 1 runs the warp of highest priority as far as it can, and redraws
// the priorities from time to time. Under policy 1 warps drift apart as far as the barriers allow. Policy 0 keeps warps
// nearly in step, which hides missing barriers. Inside a warp the lanes run in random order. Blocks run one after
// another in random order. The blocks of a cluster run together, and their warps are numbered through all blocks.
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

// A cp.async in flight. `data` was read when the copy was issued; it lands when the thread waits for the copy's group.
struct Copy {
  uint32_t dst;
  int bytes;
  uint32_t data[4];
};

struct Lane {
  Fiber fiber;
  Who who;
  bool waited;                            // whether the thread has waited for the kernels before
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;                 // not committed
};

struct Warp {
  uint32_t ready, alive;
  uint32_t met;         // lanes that have arrived at `meeting`
  const char* meeting;  // the instruction in which they wait
  void* operands[32];
  uint32_t priority;
};

struct Barrier {
  int expected, arrived;
  uint32_t waiting;  // warps
  Clocks clocks;
};

// arrived: the warps that have arrived at a cluster's barrier. passed: the warps that have not waited since the barrier
// was passed.
struct ClusterBarrier {
  uint32_t arrived, passed, waiting;  // warps
  Clocks gathering, clocks;
  Clocks gathering_reads, reads;  // of arrivals that order only reads
};

// How a kernel is launched, besides its grid: see launch.h.
struct How {
  Dim cluster;
  bool early = false;
};

class Machine {
 public:
  // Sets seed and policy (-1: drawn per block) of the following launches. Launches are numbered from here, so the same
  // seed gives the same schedule.
  void configure(uint64_t seed, int policy);
  int multiprocessors = 3;  // few, so that grids stride and each block merges many partial results

  // Runs `body(context)` in every thread of every block. Throws Fault.
  void run(const std::string& op, Dim grid, int block, size_t shared_bytes, void (*body)(const void*),
           const void* context, How how = {});

  // Instructions call the following functions, inside a fiber.
  Lane& lane() { return *current_; }
  Warp& warp() { return warps_[current_->who.warp]; }
  Shadow shadow;
  Early early;  // global memory of a kernel that starts before the previous one has ended
  Dim grid;
  int threads = 0, blocks = 0;  // threads of a block; blocks of a cluster
  int rank() const { return current_->who.warp / block_warps_; }
  const Dim& block_index() const { return block_indices_[rank()]; }
  int block_warp() const { return current_->who.warp % block_warps_; }

  // Every lane of the warp comes here with the same `name`. The other lanes sleep until the last lane arrives. The
  // function returns true to the last lane, which does the work of all lanes and then calls release().
  bool meet(const char* name, void* operand);
  void release(int warp) { wake(warp); }
  // The whole warp (after meet()) arrives at a barrier of `expected` threads.
  void arrive(int id, int expected, bool wait);
  void pause();
  // The whole warp (after meet()) arrives at the cluster's barrier. cluster_wait waits there.
  void cluster_arrive(bool only_reads);
  void acquire_cluster(int warp);
  void cluster_wait();
  // One lane alone waits until `wake_lane` is called for it. `what`: the instruction.
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
  std::vector<Lane> lanes_ = std::vector<Lane>(1024);  // their stacks are allocated at their first use
  Warp warps_[kMaxWarps];
  Barrier barriers_[kMaxWarps][16];  // per block
  ClusterBarrier cluster_barrier_;
  std::vector<Dim> block_indices_;
  int block_warps_ = 1, warps_running_ = 0;  // warps of a block; running warps of the cluster
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

// A warp-wide instruction. `complete(T* const (&operands)[32])` runs once, in the last lane that arrives.
template <class T, class Complete>
void collective(const char* name, T& operand, Complete complete) {
  if (machine.meet(name, &operand)) {
    complete(reinterpret_cast<T* const(&)[32]>(machine.warp().operands));
    machine.release(machine.lane().who.warp);
  }
  machine.pause();
}

}  // namespace emu
