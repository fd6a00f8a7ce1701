// ldmatrix and mma. Which lane holds which element is written as in the figures of the PTX ISA.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "emulator/core/machine.h"
#include "emulator/core/numbers.h"

namespace emu {

// Lane l gives the address of row l % 8 of matrix l / 8 (eight 16-bit values). Register m of lane l receives elements
// (l / 4, 2 * (l % 4)) and the next of matrix m, or of the transpose of matrix m.
template <int Matrices, bool Transposed>
void ldmatrix(const char* name, uint32_t (&r)[Matrices], uint32_t addr) {
  struct Operands {
    uint32_t* r;
    uint32_t addr;
  } mine{r, addr};
  collective(name, mine, [name](Operands* const(&all)[32]) {
    const int warp = machine.lane().who.warp;
    uint16_t element[Matrices][8][8];
    for (int l = 0; l < 8 * Matrices; ++l) {
      const Who who{warp, l};
      machine.shadow.read(name, all[l]->addr, 16, who);
      std::memcpy(element[l / 8][l % 8], machine.shadow.at(name, all[l]->addr, 16, who), 16);
    }
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, column = 2 * (l % 4);
      for (int m = 0; m < Matrices; ++m) {
        const uint32_t lo = Transposed ? element[m][column][row] : element[m][row][column];
        const uint32_t hi = Transposed ? element[m][column + 1][row] : element[m][row][column + 1];
        all[l]->r[m] = lo | hi << 16;
      }
    }
  });
}

enum class Mma { f16, bf16, tf32 };

inline const float* f16_table() {
  static const std::vector<float> table = [] {
    std::vector<float> t(65536);
    for (int i = 0; i < 65536; ++i) t[i] = widen_f16(static_cast<uint16_t>(i));
    return t;
  }();
  return table.data();
}

struct MmaOperands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// The registers of a warp as matrices A [16, K], B [K, 8].
template <Mma Kind, int K>
void gather(MmaOperands* const (&all)[32], float (&a)[16][K], float (&b)[K][8]) {
  const float* table = f16_table();
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    if constexpr (Kind == Mma::tf32) {
      // The tensor core reads the upper 19 bits of a register.
      for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = float_of(all[l]->a[i] & 0xffffe000u);
      for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = float_of(all[l]->b[i] & 0xffffe000u);
    } else {
      const auto half = [table](uint32_t word, int which) {
        const uint16_t h = static_cast<uint16_t>(word >> (16 * which));
        return Kind == Mma::f16 ? table[h] : widen_bf16(h);
      };
      for (int i = 0; i < 4; ++i) {
        for (int e = 0; e < 2; ++e) a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + e] = half(all[l]->a[i], e);
      }
      for (int i = 0; i < 2; ++i) {
        for (int e = 0; e < 2; ++e) b[2 * t + 8 * i + e][g] = half(all[l]->b[i], e);
      }
    }
  }
}

// D += A B with float32 sums in ascending k. The hardware adds in another order and truncates where this function
// rounds. Tolerances must therefore follow from the formats, and not from the results of this function.
template <Mma Kind>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr int K = Kind == Mma::tf32 ? 8 : 16;
  constexpr const char* name = Kind == Mma::f16 ? "mma.f16" : Kind == Mma::bf16 ? "mma.bf16" : "mma.tf32";
  MmaOperands mine{d, a, b};
  collective(name, mine, [](MmaOperands* const(&all)[32]) {
    float left[16][K], right[K][8], sum[16][8] = {};
    gather<Kind, K>(all, left, right);
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < K; ++k) {
        for (int n = 0; n < 8; ++n) sum[m][n] += left[m][k] * right[k][n];
      }
    }
    for (int l = 0; l < 32; ++l) {
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; ++i) all[l]->d[i] += sum[g + 8 * (i / 2)][2 * t + i % 2];
    }
  });
}

}  // namespace emu
