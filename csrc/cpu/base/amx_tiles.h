// The eight registers of the matrix unit, 16 rows of 64 bytes each, and its product. Where this file is compiled
// without the matrix unit, plain C++ computes the same sums: tests then prove the kernels on other machines.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AMX_BF16__
#include <immintrin.h>
#endif

#include "cpu/base/vec.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

#ifdef __AMX_BF16__

// Assembly instead of intrinsics: g++ 12 has the intrinsics as macros that take only a literal as a register, and it
// assumes that they read only the first eight bytes of a configuration.
class Tiles {
 public:
  template <int I>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(I));
  }
  template <int I>
  void load(const uint16_t* p) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(int64_t{64}), "i"(I) : "memory");
  }
  template <int I, class T>
  void load(const T* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride * static_cast<int64_t>(sizeof(T))), "i"(I)
                 : "memory");
  }
  template <int I>
  void store(float* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride * 4), "i"(I) : "memory");
  }
  // c += a b: [16][32] by [16 pairs][16][2].
  template <int C, int A, int B>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

// oneDNN remembers that it has configured this thread's tiles, so its configuration is saved here and restored later.
inline void begin_tiles(void* saved) {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
  asm volatile("sttilecfg (%0)" ::"r"(saved) : "memory");
  asm volatile("ldtilecfg (%0)" ::"r"(&config) : "memory");
}
inline void end_tiles(const void* saved) {
  if (*static_cast<const uint8_t*>(saved) != 0) {
    asm volatile("ldtilecfg (%0)" ::"r"(saved) : "memory");
  } else {
    asm volatile("tilerelease" ::: "memory");
  }
}

#else

class Tiles {
 public:
  template <int I>
  void zero() {
    std::memset(&tiles_[I], 0, sizeof(Tile));
  }
  template <int I>
  void load(const uint16_t* p) {
    std::memcpy(&tiles_[I], p, sizeof(Tile));
  }
  template <int I, class T>
  void load(const T* p, int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(&tiles_[I].values[row], p + row * stride, 64);
  }
  template <int I>
  void store(float* p, int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(p + row * stride, &tiles_[I].values[row], 64);
  }
  template <int C, int A, int B>
  void multiply() {
    add_product(tiles_[A], tiles_[B], tiles_[C]);
  }

 private:
  struct Tile {
    union {
      float values[16][16];
      uint16_t words[16][32];
    };
  };

  // The sums follow Intel's manual: even and odd products are summed apart and then added, and subnormal inputs and
  // results are 0. A product of two bfloat16 is exact in float32, so no fused multiply-add is needed.
  [[gnu::noinline]] static void add_product(const Tile& a, const Tile& b, Tile& c) {
    constexpr int kVectors = 16 / kWidth;
    Vec right[2][16][kVectors];
    for (int k = 0; k < 16; ++k) {
      for (int v = 0; v < kVectors; ++v) {
        const BitVec pairs = bit_cast<BitVec>(RESNET_FUSED_ISA::load(&b.values[k][v * kWidth]));
        right[0][k][v] = flushed(bit_cast<Vec>(pairs << 16));
        right[1][k][v] = flushed(bit_cast<Vec>(pairs & 0xffff0000));
      }
    }
    for (int m = 0; m < 16; ++m) {
      Vec sums[2][kVectors] = {};
      for (int k = 0; k < 16; ++k) {
        for (int odd = 0; odd < 2; ++odd) {
          const uint32_t word = a.words[m][2 * k + odd];
          const Vec left = flushed(bit_cast<Vec>(BitVec{} + (word << 16)));
          for (int v = 0; v < kVectors; ++v) sums[odd][v] = flushed(sums[odd][v] + left * right[odd][k][v]);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        float* to = &c.values[m][v * kWidth];
        RESNET_FUSED_ISA::store(to, flushed(flushed(RESNET_FUSED_ISA::load(to)) + flushed(sums[0][v] + sums[1][v])));
      }
    }
  }
  static Vec flushed(Vec value) {
    const BitVec bits = bit_cast<BitVec>(value);
    return bit_cast<Vec>((bits & 0x7f800000) != 0 ? bits : bits & 0x80000000);
  }

  Tile tiles_[8];
};

inline void begin_tiles(void*) {}
inline void end_tiles(const void*) {}

#endif

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
