// Shared memory of the blocks of one cluster, and a happens-before record of who touched each 2 bytes of it.
//
// Every warp has a clock that advances when it synchronises; `known[w][v]` is the latest clock of warp v that warp w
// has synchronised with. An access must be ordered, by barriers or sync_warp, after every earlier access of another
// thread it conflicts with. So a missing barrier is a fault under every schedule that reaches it, not only an unlucky
// one. Orders inside a warp count too: two lanes conflict unless the warp has synchronised in between.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace emu {

constexpr int kMaxWarps = 32;
constexpr int kGrain = 2;  // bytes per cell: the smallest access
// Who else has a clock: the copies that arrive at one mbarrier. Each barrier has its own, so that waiting for one copy
// is no excuse for reading another.
constexpr int kBulkSources = 40;
constexpr int kActors = kMaxWarps + kBulkSources;
// Shared memory of the block of rank r, as the others of its cluster address it, begins so many times r + 1 further.
constexpr uint32_t kThere = 1u << 24;

// Something the kernel must not do; the message names the place and the cause.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Who {
  int warp, lane;  // warps are counted through the blocks of a cluster
};

struct Clocks {
  uint32_t at[kActors] = {};
  void join(const Clocks& other) {
    for (int w = 0; w < kActors; ++w) at[w] = at[w] < other.at[w] ? other.at[w] : at[w];
  }
};

class Shadow {
 public:
  // Fresh blocks, of `warps` each: memory full of 0xFF (NaN in every float format) and never written.
  void reset(uint32_t base, size_t bytes, int warps, int blocks);

  // Address of [addr, addr + bytes) after bounds and alignment checks; no access is recorded.
  unsigned char* at(const char* what, uint32_t addr, int bytes, Who who);

  void read(const char* what, uint32_t addr, int bytes, Who who);
  void write(const char* what, uint32_t addr, int bytes, Who who);

  // cp.async: between issue and the issuing thread's wait no one may touch the destination.
  void copy_issued(const char* what, uint32_t addr, int bytes, Who who);
  void copy_landed(const char* what, uint32_t addr, int bytes, Who who);

  // A bulk copy: no thread may touch its destination from issue until it has landed; then only threads that have waited
  // at its barrier may.
  void bulk_issued(const char* what, uint32_t addr, int bytes, Who who);
  void bulk_landed(uint32_t addr, const unsigned char* data, int bytes, int source);
  Clocks bulk_clock(int source) { return publish(kMaxWarps + source); }  // what a barrier passes on to its waiters

  // An asynchronous product reads its operands at any time between issue and wait: no one may write there meanwhile.
  void product_issued(const char* what, uint32_t addr, int bytes, Who who);
  void product_done(const char* what, uint32_t addr, int bytes, Who who);

  // A bulk store reads at any time between issue and wait, and only what its writers have fenced: copies by tensor maps
  // see memory through another proxy than the threads.
  void fence_async(Who who) { fenced_[who.warp][who.lane] = publish(who.warp).at[who.warp]; }
  void store_issued(const char* what, uint32_t addr, int bytes, Who who);
  void store_done(const char* what, uint32_t addr, int bytes, Who who) { product_done(what, addr, bytes, who); }

  uint32_t base() const { return base_; }
  int rank_of(uint32_t addr, Who who) const {
    return addr >= kThere ? static_cast<int>(addr / kThere) - 1 : who.warp / warps_;
  }

  // A warp of a block ends; its last one takes the memory along: every read by others must be ordered before.
  void warp_leaves(int warp);
  void block_leaves(int rank);

  // A release advances the clock, so that what the warp does next is not covered by what it published.
  Clocks publish(int warp) {
    Clocks known = known_[warp];
    ++known_[warp].at[warp];
    return known;
  }
  void acquire(int warp, const Clocks& clocks) {
    known_[warp].join(clocks);
    over_[warp].join(clocks);
  }
  // Only that what was read there has been read, so that it may be overwritten.
  void acquire_reads(int warp, const Clocks& clocks) { over_[warp].join(clocks); }

 private:
  struct Cell {
    uint32_t write_clock;  // 0: never written
    uint32_t readers;      // warps that have read since that write
    uint8_t warp, lane;    // last writer
    uint8_t in_flight;     // a cp.async or bulk copy is on its way
    uint16_t products;     // that are reading it
  };
  struct Read {
    uint32_t clock;
    int lane;  // kMany: more than one lane since the warp last synchronised
  };
  static constexpr int kMany = 32;

  Read& last_read(size_t cell, int warp) { return reads_[cell * warps_ * blocks_ + warp]; }
  // Of [addr, addr + bytes) in memory_, after the checks of `at`.
  size_t offset(const char* what, uint32_t addr, int bytes, Who who) const;
  void record_write(const char* what, uint32_t addr, int bytes, Who who);
  [[noreturn]] void fail(const char* what, const std::string& why, uint32_t addr, Who who, const Cell* cell) const;

  uint32_t base_ = 0;
  size_t bytes_ = 0, stride_ = 0;  // of a block's memory; from one to the next
  int warps_ = 0, blocks_ = 0;     // warps of a block
  std::vector<unsigned char> memory_;
  std::vector<Cell> cells_;
  std::vector<Read> reads_;
  Clocks known_[kActors], over_[kActors];  // what is seen; what is over, seen or not
  uint32_t fenced_[kMaxWarps][32] = {};    // clock of its warp at a lane's last fence_async
  Clocks leaving_[kMaxWarps];              // of a block: what its warps knew when they ended
  bool left_[kMaxWarps] = {};
};

}  // namespace emu
