// Copies from global to shared memory: one k-step of the activations (A, addressed as im2col would lay them out) and of
// the weights (B).
//
// k counts (r, s, c) with c fastest, as in KRSC weights and NHWC pixels. A thread copies one 16-byte chunk of every
// kRowsPerPass-th row, always at the same k, so it walks (r, s, c) once for all its rows. cp.async without source bytes
// writes zeros for padding and for rows and channels past the end.
#pragma once

#include "cuda/conv/args.cuh"
#include "cuda/conv/tile.cuh"

namespace resnet_fused::cuda {

// A position in the filter.
struct Tap {
  int r, s, c;

  __device__ __forceinline__ Tap(const ConvArgs& a, int k) : r(k / a.c / a.s), s(k / a.c % a.s), c(k % a.c) {}
  __device__ __forceinline__ void advance(const ConvArgs& a, int dr, int ds, int dc) {
    c += dc;
    if (c >= a.c) c -= a.c, ++s;
    s += ds;
    if (s >= a.s) s -= a.s, ++r;
    r += dr;
  }
};

// Offsets are 32-bit counts of kUnit elements (16 bytes, or one element when masked). The plan cuts a batch into
// launches below 2^31 units. 64-bit offsets would need registers that the accumulators need.
template <class Tile, bool kVector>
class Loader {
 public:
  __device__ __forceinline__ Loader(const ConvArgs& args, uint32_t smem, int m0, int group, int n0, int first_step)
      : args_(args),
        smem_(smem + swizzled(ptx::tid() / 8, ptx::tid() % 8)),
        tap_(args, first_step * Tile::kStep + ptx::tid() % 8 * Tile::kChunk),
        n_(n0 + ptx::tid() / 8),
        weight_((group * args.k + n_) * args.filter_units +
                (first_step * Tile::kStep + ptx::tid() % 8 * Tile::kChunk) / kUnit) {
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) {
      const int m = m0 + ptx::tid() / 8 + i * Tile::kRowsPerPass;
      const int pixel = m < args.m ? m : 0;  // rows past m read pixel 0; their sums are not used
      const int line = pixel / args.q, image = line / args.p;
      h_[i] = line % args.p * args.stride_h - args.pad_h;
      w_[i] = pixel % args.q * args.stride_w - args.pad_w;
      offset_[i] = ((image * args.h + h_[i]) * args.w + w_[i]) * args.pixel_units + group * args.group_units;
    }
  }

  // Copies the next k-step into pipeline stage `stage`, asynchronously when kVector.
  __device__ __forceinline__ void next(int stage) {
    const uint32_t a = smem_ + stage * Tile::kStageBytes;
    const uint32_t b = a + Tile::kM * kConvStepBytes;
    if constexpr (kVector) {
      copy_activations(a);
      copy_weights(b, 0);
    } else {
      copy_masked(a, b);
    }
    advance();
  }

  // The same copy in two parts. weights_of copies the weights of step i, counted from the next step, and does not
  // advance. The second part copies the activations of the next step and advances.
  __device__ __forceinline__ void weights_of(int i, int stage) const {
    copy_weights(smem_ + stage * Tile::kStageBytes + Tile::kM * kConvStepBytes, i);
  }
  __device__ __forceinline__ void next_activations(int stage) {
    copy_activations(smem_ + stage * Tile::kStageBytes);
    advance();
  }

 private:
  using Element = typename Tile::Element;
  static constexpr int kRowsA = Tile::kM / Tile::kRowsPerPass, kRowsB = Tile::kN / Tile::kRowsPerPass;
  static constexpr int kUnit = kVector ? Tile::kChunk : 1;
  static constexpr int kPass = Tile::kRowsPerPass * kConvStepBytes;  // rows % 8 stays the same, and so does the swizzle

  __device__ __forceinline__ bool inside(int i, int dh, int dw) const {
    return static_cast<unsigned>(h_[i] + dh) < static_cast<unsigned>(args_.h) &&
           static_cast<unsigned>(w_[i] + dw) < static_cast<unsigned>(args_.w);
  }
  __device__ __forceinline__ int delta(int dh, int dw, int c) const {
    return (dh * args_.w + dw) * args_.pixel_units + c / kUnit;
  }
  __device__ __forceinline__ static const Element* at(const void* base, int units) {
    return static_cast<const Element*>(base) + static_cast<int64_t>(units) * kUnit;
  }

  __device__ __forceinline__ void advance() {
    weight_ += Tile::kStep / kUnit;
    tap_.advance(args_, args_.step_r, args_.step_s, args_.step_c);
  }

  __device__ __forceinline__ void copy_activations(uint32_t a) const {
    const bool in_filter = tap_.r < args_.r;
    const int dh = tap_.r * args_.dilation_h, dw = tap_.s * args_.dilation_w;
    const int step = delta(dh, dw, tap_.c);
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) {
      const bool valid = in_filter && inside(i, dh, dw);
      ptx::cp_async16(a + i * kPass, at(args_.x, valid ? offset_[i] + step : 0), valid ? 16 : 0);
    }
  }

  // Copies the weights of the step that is `ahead` steps after the next one.
  __device__ __forceinline__ void copy_weights(uint32_t b, int ahead) const {
    const bool in_filter = ahead == 0
                               ? tap_.r < args_.r
                               : (tap_.r * args_.s + tap_.s) * args_.c + tap_.c + ahead * Tile::kStep < args_.filter;
#pragma unroll
    for (int i = 0; i < kRowsB; ++i) {
      const bool valid = in_filter && n_ + i * Tile::kRowsPerPass < args_.k;
      const int from = weight_ + ahead * (Tile::kStep / kUnit) + i * Tile::kRowsPerPass * args_.filter_units;
      ptx::cp_async16(b + i * kPass, at(args_.weight, valid ? from : 0), valid ? 16 : 0);
    }
  }

  // Copies element by element through registers. It takes any channel count and any alignment, and it is slow.
  __device__ __forceinline__ void copy_masked(uint32_t a, uint32_t b) const {
    using Chunk = ptx::Vec<Element, Tile::kChunk>;
    const int left = args_.filter - ((tap_.r * args_.s + tap_.s) * args_.c + tap_.c);
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) {
      Chunk chunk{};
      Tap tap = tap_;
#pragma unroll
      for (int e = 0; e < Tile::kChunk; ++e) {
        const int dh = tap.r * args_.dilation_h, dw = tap.s * args_.dilation_w;
        if (tap.r < args_.r && inside(i, dh, dw)) {
          chunk.v[e] = ptx::ld_global_nc<Element>(at(args_.x, offset_[i] + delta(dh, dw, tap.c)));
        }
        tap.advance(args_, 0, 0, 1);
      }
      ptx::st_shared(a + i * kPass, chunk);
    }
#pragma unroll
    for (int i = 0; i < kRowsB; ++i) {
      Chunk chunk{};
      const int from = weight_ + i * Tile::kRowsPerPass * args_.filter_units;
#pragma unroll
      for (int e = 0; e < Tile::kChunk; ++e) {
        if (e < left && n_ + i * Tile::kRowsPerPass < args_.k) {
          chunk.v[e] = ptx::ld_global_nc<Element>(at(args_.weight, from + e));
        }
      }
      ptx::st_shared(b + i * kPass, chunk);
    }
  }

  const ConvArgs& args_;
  const uint32_t smem_;  // the thread's chunk of its first row of A in stage 0
  Tap tap_;
  const int n_;  // the thread's first channel
  int weight_;   // position of the thread's next chunk
  int h_[kRowsA], w_[kRowsA];
  int offset_[kRowsA];
};

}  // namespace resnet_fused::cuda
