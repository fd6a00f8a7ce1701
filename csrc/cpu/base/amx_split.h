// Splits floats into sums of bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "cpu/base/vec.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// floats split in one call: each of their parts fills a cache line and a row of a tile
constexpr int64_t kSplitFloats = 32;

// Writes kSplitFloats floats as kParts bfloat16 each, part_stride values apart. After each part the rest of the float
// is exact, so three parts add up to the float.
template <int kParts>
inline void split(const float* from, uint16_t* to, int64_t part_stride) {
#ifdef __AVX512BF16__
  __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
  for (int part = 0; part < kParts; ++part) {
    const __m512bh parts = _mm512_cvtne2ps_pbh(high, low);
    __m512i bits;
    std::memcpy(&bits, &parts, sizeof(bits));
    _mm512_storeu_si512(to + part * part_stride, bits);
    const auto widened = [&](__m256i words) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
    };
    low = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(bits)));
    high = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(bits, 1)));
  }
#else
  for (int i = 0; i < kSplitFloats; i += kWidth) {
    Vec left = load(from + i);
    for (int part = 0; part < kParts; ++part) {
      const WordVec rounded = from_float(left, bf16{});
      std::memcpy(to + part * part_stride + i, &rounded, sizeof(rounded));
      left -= to_float(rounded, bf16{});
    }
  }
#endif
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
