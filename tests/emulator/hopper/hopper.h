// Hopper's instructions: mbarriers, bulk copies by tensor maps, asynchronous products of a warpgroup.
//
// The emulator gives the weakest guarantees that the PTX ISA allows. A copy lands at a random time, which differs
// between the blocks of a cluster. Only a thread that has waited at the copy's own barrier may read the copy. An
// arrival from another block says that the arriving thread's reads are done, and says nothing about its writes. A
// product reads its operands at any time between issue and wait, and its accumulators are NaN until the wait. Each warp
// of a warpgroup computes its 16 rows without waiting for the others.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "emulator/core/shadow.h"

namespace emu {

// The contents that tests/emulator/hopper/tensor_map_emulated.h writes into the 128 bytes of a ptx::TensorMap.
// Dimensions stand innermost first. Dimensions beyond the rank have size 1.
constexpr int kBoxRank = 4, kBoxRow = 128;  // bytes of a row in shared memory
struct BoxMap {
  const void* data;
  int64_t size[kBoxRank], stride[kBoxRank];  // bytes; the first stride is the size of an element
  int box[kBoxRank], rank;
};

struct Product {
  float* d[32];   // accumulators of each lane
  int count;      // accumulators of one lane
  uint64_t a, b;  // descriptors
  bool add[32], bf16;
};

class Hopper {
 public:
  void reset();
  void launch() { stored_.clear(); }

  void init(uint32_t addr, int arrivals);
  void init_fence();
  void arrive(const char* what, uint32_t addr, int64_t expect);
  void wait(uint32_t addr, int parity);

  // blocks: a bit for each block of the cluster that receives the copy. 0: this block alone.
  void copy(uint32_t dst, const BoxMap& map, const int (&at)[kBoxRank], uint32_t mbar, uint32_t blocks);
  bool copies_in_flight() const { return !copies_.empty(); }
  void block_leaves(int rank);
  void land_one();

  // A store of the current thread. It reads at any time between issue and wait.
  void store(uint32_t src, const BoxMap& map, int column, int row);
  void store_commit();
  void store_wait_read();

  // The following act for the current warp and are called once for all of its lanes.
  void fence();
  void issue(const Product& product);
  void commit();
  void finish(int pending);

  void thread_ends();

 private:
  struct Mbarrier {
    int arrivals, pending;
    int64_t bytes;  // bytes that are still expected
    uint32_t phase;
    bool fenced;
    int rank;                        // rank of the barrier's block
    int source;                      // clock of the barrier in the shadow; -1: nothing has landed yet
    Clocks gathering, passed;        // clocks of the barrier's block and of copies
    Clocks read_there, read_passed;  // clocks of other blocks
    std::vector<Who> waiting;
  };
  struct Copy {
    uint32_t dst, mbar;  // both name their block
    std::vector<unsigned char> data;
  };
  struct Store {
    uint32_t src;
    BoxMap map;
    int column, row;
    Who who;
    bool committed;
  };
  // The products of a warp: groups in flight, oldest first, and the true values of accumulators that show NaN.
  struct Products {
    bool fenced = false;
    std::vector<Product> open;
    std::vector<std::vector<Product>> groups;
    std::map<float*, std::vector<float>> values;
  };

  Mbarrier& at(const char* what, uint32_t addr);
  void advance(Mbarrier& barrier);
  static void acquire(const Mbarrier& barrier, Who who);
  void stores_end();
  void record(const Store& store);
  void operands(const Product& product, bool done);
  void compute(const Product& product);

  std::map<uint32_t, Mbarrier> mbarriers_;  // by addresses that name the block
  int sources_ = 0;
  std::vector<Copy> copies_;
  std::vector<Store> stores_;
  std::map<const unsigned char*, const unsigned char*> stored_;  // what the stores of this launch write: first, end
  Products products_[kMaxWarps];
  std::vector<std::pair<uint64_t, uint64_t>> issued_[kMaxWarps / 4];  // per warpgroup, by its first warp that issues
  size_t issues_[kMaxWarps] = {};
};

}  // namespace emu
