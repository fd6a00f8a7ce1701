// What Hopper adds to a block: mbarriers, bulk copies by tensor maps, asynchronous products of a warpgroup.
//
// Everything is modelled at its weakest. A copy lands at a random moment, in each block of a cluster at another one,
// and only a thread that has waited at the copy's own barrier may read it. An arrival from another block says that the
// arriving thread's reads are done; it says nothing about its writes. A product reads its operands at any moment
// between issue and wait, and its accumulators are NaN until then. Each warp of a warpgroup computes its 16 rows
// without waiting for the others.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "emulator/core/shadow.h"

namespace emu {

// What tests/emulator/hopper/tensor_map_emulated.h puts into the 128 bytes of a ptx::TensorMap.
// Dimensions innermost first, those beyond the rank of size 1.
constexpr int kBoxRank = 4, kBoxRow = 128;  // bytes of a row in shared memory
struct BoxMap {
  const void* data;
  int64_t size[kBoxRank], stride[kBoxRank];  // bytes; the first is that of an element
  int box[kBoxRank], rank;
};

struct Product {
  float* d[32];   // accumulators of the lanes
  int count;      // of one lane
  uint64_t a, b;  // descriptors
  bool add[32], bf16;
};

class Hopper {
 public:
  void reset();

  void init(uint32_t addr, int arrivals);
  void init_fence();
  void arrive(const char* what, uint32_t addr, int64_t expect);
  void wait(uint32_t addr, int parity);

  // blocks: a bit for each block of the cluster that it goes to; 0: only this one.
  void copy(uint32_t dst, const BoxMap& map, const int (&at)[kBoxRank], uint32_t mbar, uint32_t blocks);
  bool copies_in_flight() const { return !copies_.empty(); }
  void block_leaves(int rank);
  void land_one();

  // Stores of the current thread: read at any moment between issue and wait.
  void store(uint32_t src, const BoxMap& map, int column, int row);
  void store_commit();
  void store_wait_read();

  // Of the current warp, called once for all of its lanes.
  void fence();
  void issue(const Product& product);
  void commit();
  void finish(int pending);

  void thread_ends();

 private:
  struct Mbarrier {
    int arrivals, pending;
    int64_t bytes;  // still expected
    uint32_t phase;
    bool fenced;
    int rank;                        // of its block
    int source;                      // its clock in the shadow; -1: nothing has landed yet
    Clocks gathering, passed;        // of its block and of copies
    Clocks read_there, read_passed;  // of other blocks
    std::vector<Who> waiting;
  };
  struct Copy {
    uint32_t dst, mbar;  // with their block
    std::vector<unsigned char> data;
  };
  struct Store {
    uint32_t src;
    BoxMap map;
    int column, row;
    Who who;
    bool committed;
  };
  // Of a warp: groups in flight, oldest first, and the true values of accumulators that show NaN.
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
  void operands(const Product& product, bool done);
  void compute(const Product& product);

  std::map<uint32_t, Mbarrier> mbarriers_;  // by addresses that name the block
  int sources_ = 0;
  std::vector<Copy> copies_;
  std::vector<Store> stores_;
  Products products_[kMaxWarps];
  std::vector<std::pair<uint64_t, uint64_t>> issued_[kMaxWarps / 4];  // by the warpgroup's first warp to come
  size_t issues_[kMaxWarps] = {};
};

}  // namespace emu
