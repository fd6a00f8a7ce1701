// 3x3, stride 1, padding 1, 64 -> 64 channels: out = activation(bn(conv(x, weight)) [+ residual]) on Hopper.
//
// D [64 channels, 112] = sum over 9 taps of W_tap [64, 64] * X_tap [112, 64]^T. The weights stay in shared memory.
// X_tap is the tap's line of the ring from pixel `s` on. Pixels lie 1024 bytes apart (eight images, innermost), so a
// tap is an address, and every line is an operand of nine products. The copy engine writes zeros for pixels outside of
// the image and for images outside of the batch.
//
// The gradient of the input is the same convolution with the taps in reverse order.
#pragma once

#include "cuda/base/elements.cuh"
#include "cuda/hopper/strip/plan.h"
#include "ptx/hopper.cuh"

namespace resnet_fused::cuda {

struct StripArgs {
  StripPlan plan;
  Epilogue epilogue;
  void* out;
  bool gradient;  // the op computes the gradient of the input, so the order of the taps is reversed
};

struct StripMemory {
  uint32_t base = (ptx::smem_base() + 1023) / 1024 * 1024;

  __device__ __forceinline__ uint32_t tap(int i) const { return base + i * kStripTapBytes; }
  __device__ __forceinline__ uint32_t line(int i) const { return base + kStripLines + strip_slot(i) * kStripLineBytes; }
  __device__ __forceinline__ uint32_t staging(int consumer) const {
    return base + kStripStaging + consumer * kStripStagingBytes;
  }
  __device__ __forceinline__ uint32_t weights_full() const { return base + kStripBarriers; }
  __device__ __forceinline__ uint32_t full(int i) const { return weights_full() + 8 + 8 * strip_slot(i); }
  __device__ __forceinline__ uint32_t empty(int i) const { return full(i) + 8 * kStripSlots; }
};

// One thread loads the weights, then the lines from the one above the first output to the one below the last.
__device__ __forceinline__ void strip_load(const StripMemory& memory, const StripPlace& place, bool gradient,
                                           const ptx::TensorMap& x, const ptx::TensorMap& weight) {
  ptx::mbar_arrive_expect(memory.weights_full(), kStripTaps * kStripTapBytes);
  for (int i = 0; i < kStripTaps; ++i) {
    const int tap = gradient ? kStripTaps - 1 - i : i;
    ptx::copy_2d(memory.tap(i), weight, tap * kStripChannels, 0, memory.weights_full());
  }
  for (int i = 0; i < place.rows + 2; ++i) {
    if (i >= kStripSlots) ptx::mbar_wait(memory.empty(i), strip_parity(i - kStripSlots));
    ptx::mbar_arrive_expect(memory.full(i), kStripLineBytes);
    ptx::copy_4d(memory.line(i), x, 0, place.image, place.column - 1, place.row + i - 1, memory.full(i));
  }
}

// Mean, scale and bias of the two channels whose sums a thread holds.
struct StripNorm {
  float mean[2], scale[2], bias[2];

  __device__ __forceinline__ StripNorm(const Norm& norm, int channel) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = channel + 8 * half;
      mean[half] = parameter(norm.mean, i, 0.0f);
      scale[half] = ptx::mul(parameter(norm.weight, i, 1.0f), inverse_deviation(norm, i));
      bias[half] = parameter(norm.bias, i, 0.0f);
    }
  }
  __device__ __forceinline__ float operator()(float sum, int half) const {
    return ptx::fma(ptx::add(sum, -mean[half]), scale[half], bias[half]);
  }
};

constexpr int kStripChunks = kStripColumns * kStripImages * 8 / 128;  // pieces of 16 bytes that a thread moves per line

// The pieces of one output line that thread `tid` of a warpgroup moves between global memory and staging.
struct StripChunks {
  const StripPlan& plan;
  StripPlace place;
  int row, tid;

  __device__ __forceinline__ int pixel(int i) const { return 2 * i + tid / 64; }
  __device__ __forceinline__ int image() const { return tid / 8 % kStripImages; }
  __device__ __forceinline__ bool inside(int i) const {
    return place.column + pixel(i) < plan.w && place.image + image() < plan.n;
  }
  // Offset in 16-bit values.
  __device__ __forceinline__ int64_t global(int i) const {
    const int64_t line = static_cast<int64_t>(place.image + image()) * plan.h + row;
    return (line * plan.w + place.column + pixel(i)) * kStripChannels + 8 * (tid % 8);
  }
  // Swizzled like the copy engine's boxes: eight lanes that access one column of chunks use different banks.
  __device__ __forceinline__ uint32_t staged(int i) const {
    return pixel(i) * kStripPixelBytes + image() * 128 + (tid % 8 ^ image()) * 16;
  }
};

// Computes the sums of one line. Gives back the input lines, from `released` on, that this warpgroup reads no more.
template <class Element>
__device__ __forceinline__ void strip_products(const StripMemory& memory, int row, int& released,
                                               float (&sums)[4 * kStripColumns]) {
  // All waits come before the first product: with a loop between two products ptxas (13.0) waits for each product
  // (C7520).
#pragma unroll
  for (int r = 0; r < 3; ++r) ptx::mbar_wait(memory.full(row + r), strip_parity(row + r));
  const uint64_t weights = ptx::wgmma_descriptor(memory.tap(0));
  ptx::wgmma_fence();
#pragma unroll
  for (int r = 0; r < 3; ++r) {
    const uint64_t line = ptx::wgmma_descriptor(memory.line(row + r));
#pragma unroll
    for (int step = 0; step < 12; ++step) {
      const int s = step / 4, bytes = step % 4 * 32;  // descriptors count 16 bytes
      ptx::wgmma<Element, kStripColumns * kStripImages>(sums, weights + ((3 * r + s) * kStripTapBytes + bytes) / 16,
                                                        line + (s * kStripPixelBytes + bytes) / 16, r + step > 0);
    }
  }
  ptx::wgmma_commit();
  ptx::wgmma_finish(sums);
  // The next line of this warpgroup lies kStripConsumers further down.
  for (; released < row + kStripConsumers; ++released) {
    if (ptx::lane() == 0) ptx::mbar_arrive(memory.empty(released));
  }
}

// Computes every kStripConsumers-th line of the block.
template <class Element>
__device__ __forceinline__ void strip_consume(const StripArgs& args, const StripMemory& memory, const StripPlace& place,
                                              int consumer) {
  const int tid = ptx::tid() % 128, lane = ptx::lane(), warp = ptx::warp() % 4;
  const uint32_t staging = memory.staging(consumer);
  // For stmatrix and ldmatrix: matrices 0 and 1 are the warp's lower and upper eight channels of a pixel, matrices 2
  // and 3 those of the next pixel. Rows are images.
  const uint32_t fragment =
      staging + lane / 16 * kStripPixelBytes + lane % 8 * 128 + ((2 * warp + lane / 8 % 2) ^ lane % 8) * 16;
  const StripNorm norm(args.epilogue.norm, 16 * warp + lane / 4);
  const Element* residual = static_cast<const Element*>(args.epilogue.residual);
  Element* out = static_cast<Element*>(args.out);
  int released = 0;
  ptx::mbar_wait(memory.weights_full(), 0);
  for (int row = consumer; row < place.rows; row += kStripConsumers) {
    const StripChunks chunks{args.plan, place, place.row + row, tid};
    ptx::Words4 added[kStripChunks] = {};
    if (residual != nullptr) {  // the residual is loaded while the products run
#pragma unroll
      for (int i = 0; i < kStripChunks; ++i) {
        if (chunks.inside(i)) added[i] = ptx::ld_global_nc<ptx::Words4>(residual + chunks.global(i));
      }
    }
    float sums[4 * kStripColumns];
    strip_products<Element>(memory, row, released, sums);
    if (residual != nullptr) {
#pragma unroll
      for (int i = 0; i < kStripChunks; ++i) ptx::st_shared(staging + chunks.staged(i), added[i]);
    }
    ptx::bar_sync(1 + consumer, 128);  // the residual has arrived, and the previous line has been stored
#pragma unroll
    for (int j = 0; j < kStripColumns; j += 2) {
      // A result overwrites the residual that it depends on.
      uint32_t words[4] = {};
      if (residual != nullptr) ptx::ldmatrix_x4_trans(words, fragment + j * kStripPixelBytes);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i % 2, at = 4 * j + 2 * i;
        float lo = norm(sums[at], half), hi = norm(sums[at + 1], half);
        if (residual != nullptr) {
          float lo_added, hi_added;
          ptx::unpack<Element>(words[i], lo_added, hi_added);
          lo = ptx::add(lo, lo_added), hi = ptx::add(hi, hi_added);
        }
        const Activation activation = args.epilogue.activation;
        words[i] = ptx::pack<Element>(activate(lo, activation), activate(hi, activation));
      }
      ptx::stmatrix_x4_trans(fragment + j * kStripPixelBytes, words);
    }
    ptx::bar_sync(1 + consumer, 128);
#pragma unroll
    for (int i = 0; i < kStripChunks; ++i) {
      const ptx::Words4 words = ptx::ld_shared<ptx::Words4>(staging + chunks.staged(i));
      if (chunks.inside(i)) ptx::st_global(out + chunks.global(i), words);
    }
  }
}

// Grid: x = block of the plan. Warps 0..3 and 4..7 multiply, warp 8 loads.
template <class Element>
__global__ void __launch_bounds__(kStripThreads, 1)
    conv_strip_kernel(const StripArgs args, const __grid_constant__ ptx::TensorMap x,
                      const __grid_constant__ ptx::TensorMap weight) {
  const StripMemory memory;
  const StripPlace place = strip_place(args.plan, ptx::bid_x());
  if (ptx::tid() == 0) {
    ptx::mbar_init(memory.weights_full(), 1);
    for (int i = 0; i < kStripSlots; ++i) {
      ptx::mbar_init(memory.full(i), 1);
      // every warp arrives for itself: none waits for the other warps' products
      ptx::mbar_init(memory.empty(i), 4 * kStripConsumers);
    }
    ptx::mbar_init_fence();
  }
  ptx::sync_threads();
  const int group = ptx::shfl_idx(ptx::warp() / 4, 0);  // descriptors must be the same in all lanes
  if (group == kStripConsumers) {
    if (ptx::lane() == 0) strip_load(memory, place, args.gradient, x, weight);
  } else {
    strip_consume<Element>(args, memory, place, group);
  }
}

}  // namespace resnet_fused::cuda
