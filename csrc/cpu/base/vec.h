// One vector of floats of the instruction set that this file is compiled for, loaded from and stored to each dtype.
//
// Files that include this header are compiled once per instruction set. All their code lies in a namespace named
// RESNET_FUSED_ISA: the linker must not take a shared function from a set that this CPU does not have.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "ops.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kWidth)));
typedef uint16_t WordVec __attribute__((vector_size(2 * kWidth)));
typedef double DoubleVec __attribute__((vector_size(8 * kWidth)));

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vec splat(float value) { return Vec{} + value; }

inline Vec to_float(WordVec h, bf16) { return bit_cast<Vec>(__builtin_convertvector(h, BitVec) << 16); }

inline WordVec from_float(Vec v, bf16) {
  const BitVec bits = bit_cast<BitVec>(v);
  const BitVec nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // A NaN is not rounded, because rounding could carry it into an infinity. The upper 16 bits of a quiet NaN are a NaN,
  // and arithmetic makes quiet NaNs only.
  const BitVec nan = bits >> 16;
  return __builtin_convertvector(v == v ? nearest_even : nan, WordVec);
}

#if defined(__AVX512F__)
inline Vec to_float(WordVec h, f16) { return bit_cast<Vec>(_mm512_cvtph_ps(bit_cast<__m256i>(h))); }
inline WordVec from_float(Vec v, f16) {
  return bit_cast<WordVec>(_mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
inline Vec to_float(WordVec h, f16) { return bit_cast<Vec>(_mm256_cvtph_ps(bit_cast<__m128i>(h))); }
inline WordVec from_float(Vec v, f16) {
  return bit_cast<WordVec>(_mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Vec to_float(WordVec h, f16) {
  const BitVec bits = __builtin_convertvector(h, BitVec);
  const BitVec sign = (bits & 0x8000) << 16, magnitude = (bits & 0x7fff) << 13;
  // moves the exponent's bias, which is exact for subnormals too
  const Vec scaled = bit_cast<Vec>(magnitude) * 0x1p112f;
  const BitVec special = magnitude | 0x7f800000;  // infinity and NaN
  return bit_cast<Vec>(sign | ((bits & 0x7c00) == 0x7c00 ? special : bit_cast<BitVec>(scaled)));
}
inline WordVec from_float(Vec v, f16) {
  const BitVec bits = bit_cast<BitVec>(v), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const BitVec normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const BitVec subnormal = bit_cast<BitVec>(bit_cast<Vec>(magnitude) + 0.5f) - 0x3f000000;  // the adder rounds
  const BitVec finite = magnitude < 0x38800000 ? subnormal : normal;
  const BitVec special = magnitude > 0x7f800000 ? BitVec{} + 0x7e00 : BitVec{} + 0x7c00;
  return __builtin_convertvector(sign | (magnitude >= 0x477ff000 ? special : finite), WordVec);
}
#endif

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

template <class T>
inline Vec load(const T* p) {
  WordVec h;
  std::memcpy(&h, p, sizeof(h));
  return to_float(h, T{});
}
template <class T>
inline void store(T* p, Vec v) {
  const WordVec h = from_float(v, T{});
  std::memcpy(p, &h, sizeof(h));
}

// Loads or stores the first n < kWidth lanes. A load sets the other lanes to zero, a store leaves them out.
template <class T>
inline Vec load(const T* p, int n) {
  T lanes[kWidth] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
inline void store(T* p, Vec v, int n) {
  T lanes[kWidth];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << n) - 1), p); }
inline void store(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1 << n) - 1), v); }
inline Vec load(const bf16* p, int n) {
  return to_float(bit_cast<WordVec>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1 << n) - 1), p)), bf16{});
}
inline void store(bf16* p, Vec v, int n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1 << n) - 1), bit_cast<__m256i>(from_float(v, bf16{})));
}
#endif

template <class T>
inline float load_one(const T* p) {
  return load(p, 1)[0];
}

// ReLU is v < 0 ? 0 : v and not max(v, 0): NaN stays NaN and -0.0 stays -0.0, as in torch.
inline Vec activate(Vec v, Activation activation) { return activation == Activation::relu ? (v < 0 ? Vec{} : v) : v; }
// The gradient through a ReLU whose stored result is `out`. The function serves ReLU alone: the gradient of another
// activation may need the activation's input.
inline Vec relu_gradient(Vec grad, Vec out) { return out <= 0 ? Vec{} : grad; }

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
