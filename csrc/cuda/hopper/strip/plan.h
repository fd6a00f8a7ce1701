// How the strip convolution divides its work: pure functions of the shape, shared by host, kernel and tests.
//
// A strip is 14 columns of 8 images. A block computes `rows` lines of one strip from top to bottom. All weights stay in
// shared memory. The lines of the input pass through a ring, so a block reads no line twice. ResNet's first layer at
// batch 256 has 128 strips of 56 lines: one wave on 132 multiprocessors. With smaller batches several blocks share a
// strip.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/base/hopper.h"
#include "cuda/hopper/strip/op.h"
#include "ptx/ptx.cuh"  // defines __host__ and __device__ for g++ too

namespace resnet_fused::cuda {

constexpr int kStripChannels = 64;  // in and out; they are the 64 rows of one product and 128 bytes of a pixel
constexpr int kStripImages = 8;     // eight images of a pixel are one period of the swizzle, 1024 bytes
constexpr int kStripColumns = 14;   // four strips are 56 columns; a product may have the width 14 * 8 = 112
constexpr int kStripPixels = kStripColumns + 2;
constexpr int kStripTaps = 9;
// Two warpgroups take lines in turn: one multiplies while the other finishes its line, which takes less than the 2016
// clocks of a line's products. A third warpgroup would need 14 KiB more, which is one slot of the ring.
constexpr int kStripConsumers = 2;
constexpr int kStripSlots = 7;  // lines in the ring: four in use, three in flight
constexpr int kStripThreads = kStripConsumers * 128 + 32;

constexpr int kStripPixelBytes = kStripImages * 128;
constexpr int kStripLineBytes = kStripPixels * kStripPixelBytes;
constexpr int kStripTapBytes = kStripChannels * 128;
constexpr int kStripStagingBytes = kStripColumns * kStripPixelBytes;
// Offsets in shared memory. Every operand begins at a multiple of 1024 bytes. Barriers: weights, full slots, empty
// slots.
constexpr int kStripLines = kStripTaps * kStripTapBytes;
constexpr int kStripStaging = kStripLines + kStripSlots * kStripLineBytes;
constexpr int kStripBarriers = kStripStaging + kStripConsumers * kStripStagingBytes;
constexpr int kStripShared = kStripBarriers + 8 * (1 + 2 * kStripSlots) + 1024;  // 1024: alignment of the beginning
static_assert(kStripShared <= kMostShared, "more shared memory than a block may have");

struct StripPlan {
  int n, h, w;
  int strips_w;  // strips side by side
  int segments;  // blocks that share a strip, one below the other
  int rows;      // of a segment; the last segment may have fewer
  int64_t blocks;
};

// The lines and images of a block.
struct StripPlace {
  int image, column, row, rows;
};

// Neighbouring blocks of the grid share two columns of the input, which then come from L2.
__host__ __device__ __forceinline__ StripPlace strip_place(const StripPlan& plan, int block) {
  const int column = block % plan.strips_w, above = block / plan.strips_w;
  const int row = above % plan.segments * plan.rows, left = plan.h - row;
  return {above / plan.segments * kStripImages, column * kStripColumns, row, left < plan.rows ? left : plan.rows};
}

// The slot of the ring that holds input line `line` of a block, and the parity of that use of the slot. Line 0 of a
// block is the line above its first output.
__host__ __device__ __forceinline__ int strip_slot(int line) { return line % kStripSlots; }
__host__ __device__ __forceinline__ int strip_parity(int line) { return line / kStripSlots % 2; }

// Why `device` cannot run the kernel for a convolution, or for the gradient of its input; else "".
inline std::string strip_refusal(Capability device, DType dtype, const Convolution& conv) {
  if (const std::string why = hopper_refusal(device); !why.empty()) return why;
  if (dtype == DType::f32) return "the kernel multiplies float16 and bfloat16, not float32";
  const auto unless = [](const char* what, int64_t only, int64_t first, int64_t second) {
    if (first == only && second == only) return std::string();
    return "the kernel takes " + std::string(what) + " " + std::to_string(only) + ", not " +
           std::to_string(first != only ? first : second);
  };
  for (const std::string& why :
       {unless("groups", 1, conv.groups, 1), unless("input and output channels", kStripChannels, conv.c, conv.k),
        unless("a filter of size", 3, conv.r, conv.s), unless("stride", 1, conv.stride_h, conv.stride_w),
        unless("padding", 1, conv.pad_h, conv.pad_w), unless("dilation", 1, conv.dilation_h, conv.dilation_w)}) {
    if (!why.empty()) return why;
  }
  constexpr int64_t kMost = int64_t{1} << 28;  // 32-bit counts hold blocks, and lines and columns beyond an edge
  if (conv.n * conv.h * (conv.w / kStripColumns + 1) < kMost && conv.w < kMost) return "";
  return "the kernel counts in 32 bits, too few for " + std::to_string(conv.n) + " images of " +
         std::to_string(conv.h) + " x " + std::to_string(conv.w);
}

// Predicted clocks: 4000 per wave for the first loads and the last line, and 36 products of 56 clocks for each line.
inline int64_t strip_clocks(int64_t blocks, int64_t rows) { return (blocks + 131) / 132 * (4000 + 2016 * rows); }

// The plan with the best prediction for 132 multiprocessors. The device's own number is not used: one shape has one
// plan.
inline StripPlan strip_plan(const Convolution& conv) {
  const int64_t strips_w = (conv.w + kStripColumns - 1) / kStripColumns;
  const int64_t strips = (conv.n + kStripImages - 1) / kStripImages * strips_w;
  int64_t segments = 1, rows = conv.h;
  for (int64_t wanted = 2; wanted <= conv.h && strips * wanted <= 4 * 132; ++wanted) {
    const int64_t fewer = (conv.h + wanted - 1) / wanted, made = (conv.h + fewer - 1) / fewer;
    if (strip_clocks(strips * made, fewer) < strip_clocks(strips * segments, rows)) segments = made, rows = fewer;
  }
  return {int(conv.n), int(conv.h), int(conv.w), int(strips_w), int(segments), int(rows), strips * segments};
}

}  // namespace resnet_fused::cuda
