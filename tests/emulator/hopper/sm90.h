// The instructions of csrc/ptx/hopper.cuh on the emulated machine. hopper.h says what is modelled.
#pragma once

#include "emulator/core/machine.h"

#define __grid_constant__

namespace resnet_fused::ptx {

inline void mbar_init(uint32_t addr, int arrivals) { machine.hopper.init(addr, arrivals); }
inline void mbar_init_fence() { machine.hopper.init_fence(); }
inline void mbar_arrive(uint32_t addr) { machine.hopper.arrive("mbarrier.arrive", addr, 0); }
inline void mbar_arrive_expect(uint32_t addr, int bytes) {
  machine.hopper.arrive("mbarrier.arrive.expect_tx", addr, bytes);
}
inline void mbar_wait(uint32_t addr, int parity) { machine.hopper.wait(addr, parity); }
inline void mbar_arrive_cluster(uint32_t addr) {
  if (addr < emu::kThere) machine.fail("mbar_arrive_cluster at an address that cluster_address did not make");
  machine.hopper.arrive("mbarrier.arrive.shared::cluster", addr, 0);
}

inline void copy_box(int rank, uint32_t dst, const TensorMap& map, const int (&at)[emu::kBoxRank], uint32_t mbar,
                     uint32_t blocks = 0) {
  emu::BoxMap known;
  std::memcpy(&known, &map, sizeof known);
  if (known.rank != rank)
    machine.fail("bulk copy of " + std::to_string(rank) + " dimensions by a map of another number");
  machine.hopper.copy(dst, known, at, mbar, blocks);
}
inline void copy_2d(uint32_t dst, const TensorMap& map, int column, int row, uint32_t mbar) {
  copy_box(2, dst, map, {column, row, 0, 0}, mbar);
}
inline void copy_2d_multicast(uint32_t dst, const TensorMap& map, int column, int row, uint32_t mbar, int blocks) {
  if (blocks <= 0 || blocks >> machine.blocks != 0) {
    machine.fail("multicast copy to the blocks of mask " + std::to_string(blocks) +
                 ", which the cluster does not have");
  }
  copy_box(2, dst, map, {column, row, 0, 0}, mbar, static_cast<uint32_t>(blocks));
}
inline void copy_4d(uint32_t dst, const TensorMap& map, int i0, int i1, int i2, int i3, uint32_t mbar) {
  copy_box(4, dst, map, {i0, i1, i2, i3}, mbar);
}

inline void fence_async() { machine.shadow.fence_async(machine.lane().who); }
inline void store_2d(const TensorMap& map, int column, int row, uint32_t src) {
  emu::BoxMap known;
  std::memcpy(&known, &map, sizeof known);
  if (known.rank != 2) machine.fail("bulk store of 2 dimensions by a map of another number");
  machine.hopper.store(src, known, column, row);
}
inline void store_commit() { machine.hopper.store_commit(); }
inline void store_wait_read() { machine.hopper.store_wait_read(); }

// The lane that gives the address of a row writes that row.
inline void stmatrix_x4_trans(uint32_t addr, const uint32_t (&r)[4]) {
  struct Operands {
    uint32_t addr;
    const uint32_t* r;
  } mine{addr, r};
  emu::collective("stmatrix", mine, [](Operands* const(&all)[32]) {
    for (int l = 0; l < 32; ++l) {
      uint16_t row[8];  // column l % 8 of the fragment's matrix
      for (int i = 0; i < 8; ++i) {
        row[i] = static_cast<uint16_t>(all[4 * i + l % 8 / 2]->r[l / 8] >> 16 * (l % 2));
      }
      const emu::Who who{machine.lane().who.warp, l};
      machine.shadow.write("stmatrix", all[l]->addr, 16, who);
      std::memcpy(machine.shadow.at("stmatrix", all[l]->addr, 16, who), row, 16);
    }
  });
}

template <int Registers>
void registers_down() {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256, "setmaxnreg: 24 to 256, in steps of 8");
  int nothing = 0;
  emu::collective("setmaxnreg", nothing, [](int* const(&)[32]) {});
}
template <int Registers>
void registers_up() {
  registers_down<Registers>();
}

inline void wgmma_fence() {
  int nothing = 0;
  emu::collective("wgmma.fence", nothing, [](int* const(&)[32]) { machine.hopper.fence(); });
}
inline void wgmma_commit() {
  int nothing = 0;
  emu::collective("wgmma.commit_group", nothing, [](int* const(&)[32]) { machine.hopper.commit(); });
}
template <int Pending>
void wgmma_wait() {
  static_assert(Pending > 0, "wgmma_finish waits for all");
  int nothing = 0;
  emu::collective("wgmma.wait_group", nothing, [](int* const(&)[32]) { machine.hopper.finish(Pending); });
}
template <int Count>
void wgmma_finish(float (&)[Count]) {
  int nothing = 0;
  emu::collective("wgmma.wait_group 0", nothing, [](int* const(&)[32]) { machine.hopper.finish(0); });
}

struct WgmmaOperands {
  float* d;
  uint64_t a, b;
  bool add;
};
template <class T, int N>
void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma: 8 to 256 columns, in steps of 8");
  WgmmaOperands mine{d, a, b, add};
  emu::collective("wgmma", mine, [](WgmmaOperands* const(&all)[32]) {
    emu::Product product{{}, N / 2, all[0]->a, all[0]->b, {}, !is_f16<T>};
    for (int l = 0; l < 32; ++l) {
      if (all[l]->a != product.a || all[l]->b != product.b || all[l]->add != all[0]->add) {
        machine.fail("wgmma: the lanes of the warp name different operands");
      }
      product.d[l] = all[l]->d;
      product.add[l] = all[l]->add;
    }
    machine.hopper.issue(product);
  });
}

}  // namespace resnet_fused::ptx
