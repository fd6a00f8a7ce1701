// Shared memory of the blocks of one cluster, and a happens-before record of every access to each 2 bytes of it.
//
// Every warp has a clock that advances when the warp synchronises. `known[w][v]` is the latest clock of warp v with
// which warp w has synchronised. Where two accesses of different threads conflict, barriers or sync_warp must order the
// second after the first. A missing barrier is therefore a fault under every schedule that reaches it, and not only
// under an unlucky one. The order inside a warp counts too: two lanes conflict unless the warp has synchronised between
// them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace emu {

constexpr int kMaxWarps = 32;
constexpr int kGrain = 2;  // bytes per cell, the size of the smallest access
// The copies that arrive at one mbarrier have a clock too. Each barrier has a clock of its own: a thread that has
// waited for one copy may not read another.
constexpr int kBulkSources = 40;
constexpr int kActors = kMaxWarps + kBulkSources;
// The other blocks of a cluster address the shared memory of rank r at an offset of r + 1 times this number.
constexpr uint32_t kThere = 1u << 24;

// A mistake of the kernel. The message names the place and the cause.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Who {
  int warp, lane;  // warps are numbered through all blocks of a cluster
};

struct Clocks {
  uint32_t at[kActors] = {};
  void join(const Clocks& other) {
    for (int w = 0; w < kActors; ++w) at[w] = at[w] < other.at[w] ? other.at[w] : at[w];
  }
};

class Shadow {
 public:
  // Starts new blocks of `warps` warps each. Memory is full of 0xFF (NaN in every float format) and counts as never
  // written.
  void reset(uint32_t base, size_t bytes, int warps, int blocks);

  // Address of [addr, addr + bytes) after checks of bounds and alignment. No access is recorded.
  unsigned char* at(const char* what, uint32_t addr, int bytes, Who who);

  void read(const char* what, uint32_t addr, int bytes, Who who);
  void write(const char* what, uint32_t addr, int bytes, Who who);

  // cp.async: between issue and the issuing thread's wait no thread may access the destination.
  void copy_issued(const char* what, uint32_t addr, int bytes, Who who);
  void copy_landed(const char* what, uint32_t addr, int bytes, Who who);

  // A bulk copy: no thread may access its destination between issue and landing. After that, only threads that have
  // waited at the copy's barrier may.
  void bulk_issued(const char* what, uint32_t addr, int bytes, Who who);
  void bulk_landed(uint32_t addr, const unsigned char* data, int bytes, int source);
  // the clock that a barrier passes to its waiters
  Clocks bulk_clock(int source) { return publish(kMaxWarps + source); }

  // An asynchronous product reads its operands at any time between issue and wait. No thread may write there meanwhile.
  void product_issued(const char* what, uint32_t addr, int bytes, Who who);
  void product_done(const char* what, uint32_t addr, int bytes, Who who);

  // A bulk store reads at any time between issue and wait, and only sees writes that their writers have fenced: copies
  // by tensor maps access memory through another proxy than threads.
  void fence_async(Who who) { fenced_[who.warp][who.lane] = publish(who.warp).at[who.warp]; }
  void store_issued(const char* what, uint32_t addr, int bytes, Who who);
  void store_done(const char* what, uint32_t addr, int bytes, Who who) { product_done(what, addr, bytes, who); }

  uint32_t base() const { return base_; }
  int rank_of(uint32_t addr, Who who) const {
    return addr >= kThere ? static_cast<int>(addr / kThere) - 1 : who.warp / warps_;
  }

  // A warp of a block ends. The block's memory ends with its last warp: every read by other blocks must be ordered
  // before.
  void warp_leaves(int warp);
  void block_leaves(int rank);

  // A release advances the clock, so that it does not cover what the warp does next.
  Clocks publish(int warp) {
    Clocks known = known_[warp];
    ++known_[warp].at[warp];
    return known;
  }
  void acquire(int warp, const Clocks& clocks) {
    known_[warp].join(clocks);
    over_[warp].join(clocks);
  }
  // Orders only reads: the memory may be overwritten, but writes are not seen.
  void acquire_reads(int warp, const Clocks& clocks) { over_[warp].join(clocks); }

 private:
  struct Cell {
    uint32_t write_clock;  // 0: never written
    uint32_t readers;      // warps that have read since that write
    uint8_t warp, lane;    // the last writer
    uint8_t in_flight;     // whether a cp.async or bulk copy is in flight
    uint16_t products;     // number of products that read it
  };
  struct Read {
    uint32_t clock;
    int lane;  // kMany: more than one lane since the warp last synchronised
  };
  static constexpr int kMany = 32;

  Read& last_read(size_t cell, int warp) { return reads_[cell * warps_ * blocks_ + warp]; }
  // Offset of [addr, addr + bytes) in memory_, after the checks of `at`.
  size_t offset(const char* what, uint32_t addr, int bytes, Who who) const;
  void record_write(const char* what, uint32_t addr, int bytes, Who who);
  [[noreturn]] void fail(const char* what, const std::string& why, uint32_t addr, Who who, const Cell* cell) const;

  uint32_t base_ = 0;
  size_t bytes_ = 0, stride_ = 0;  // bytes of a block's memory; distance of two blocks' memories
  int warps_ = 0, blocks_ = 0;     // warps of a block
  std::vector<unsigned char> memory_;
  std::vector<Cell> cells_;
  std::vector<Read> reads_;
  Clocks known_[kActors], over_[kActors];  // what is seen; what has ended, seen or not
  uint32_t fenced_[kMaxWarps][32] = {};    // clock of a lane's warp at the lane's last fence_async
  Clocks leaving_[kMaxWarps];              // of a block: what its warps knew when they ended
  bool left_[kMaxWarps] = {};
};

}  // namespace emu
