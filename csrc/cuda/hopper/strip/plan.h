// How the strip convolution cuts its work: pure functions of the shape, shared by host, kernel and tests.
//
// A strip is 14 columns of 8 images. A block walks down `rows` lines of one strip with all weights in shared memory and
// the lines of the input passing through a ring, so no line is read twice within a block. 128 strips of 56 lines are
// ResNet's first layer at batch 256: one wave on 132 multiprocessors. Smaller batches cut the strips across.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/base/hopper.h"
#include "cuda/hopper/strip/op.h"
#include "ptx/ptx.cuh"  // __host__, __device__ of either world

namespace resnet_fused::cuda {

constexpr int kStripChannels = 64;  // in and out: the 64 rows of one product, 128 bytes of a pixel
constexpr int kStripImages = 8;     // a pixel of so many images is one period of the swizzle, 1024 bytes
constexpr int kStripColumns = 14;   // four strips are 56 columns; 14 * 8 = 112 is a width that a product may have
constexpr int kStripPixels = kStripColumns + 2;
constexpr int kStripTaps = 9;
// Two warpgroups take every other line: one multiplies while the other finishes its line, which takes less than the
// 2016 clocks of a line's products. A third would need 14 KiB more, that is a slot of the ring less.
constexpr int kStripConsumers = 2;
constexpr int kStripSlots = 7;  // lines in the ring: four in use, three on their way
constexpr int kStripThreads = kStripConsumers * 128 + 32;

constexpr int kStripPixelBytes = kStripImages * 128;
constexpr int kStripLineBytes = kStripPixels * kStripPixelBytes;
constexpr int kStripTapBytes = kStripChannels * 128;
constexpr int kStripStagingBytes = kStripColumns * kStripPixelBytes;
// Offsets in shared memory, every operand at a multiple of 1024 bytes. Barriers: weights, full slots, empty slots.
constexpr int kStripLines = kStripTaps * kStripTapBytes;
constexpr int kStripStaging = kStripLines + kStripSlots * kStripLineBytes;
constexpr int kStripBarriers = kStripStaging + kStripConsumers * kStripStagingBytes;
constexpr int kStripShared = kStripBarriers + 8 * (1 + 2 * kStripSlots) + 1024;  // what aligning its begin may cost
static_assert(kStripShared <= kMostShared, "more shared memory than a block may have");

struct StripPlan {
  int n, h, w;
  int strips_w;  // strips side by side
  int segments;  // blocks that share a strip, one below the other
  int rows;      // of a segment, the last may have fewer
  int64_t blocks;
};

// The lines and images of a block.
struct StripPlace {
  int image, column, row, rows;
};

// Neighbours in the grid share two columns of the input, which L2 then serves.
__host__ __device__ __forceinline__ StripPlace strip_place(const StripPlan& plan, int block) {
  const int column = block % plan.strips_w, above = block / plan.strips_w;
  const int row = above % plan.segments * plan.rows, left = plan.h - row;
  return {above / plan.segments * kStripImages, column * kStripColumns, row, left < plan.rows ? left : plan.rows};
}

// Which of the ring's slots holds input line `line` of a block (its line 0 is the one above the first output), and
// whether that use of the slot is an even or an odd one.
__host__ __device__ __forceinline__ int strip_slot(int line) { return line % kStripSlots; }
__host__ __device__ __forceinline__ int strip_parity(int line) { return line / kStripSlots % 2; }

// Why the kernel cannot run a convolution, or the gradient of its input, on a device, or "".
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
  constexpr int64_t kMost = int64_t{1} << 28;  // lines and columns beyond an edge and blocks are counted in 32 bits
  if (conv.n * conv.h * (conv.w / kStripColumns + 1) < kMost && conv.w < kMost) return "";
  return "the kernel counts in 32 bits, too few for " + std::to_string(conv.n) + " images of " +
         std::to_string(conv.h) + " x " + std::to_string(conv.w);
}

// Predicted clocks of a wave: first loads and last line, then 36 products of 56 clocks for each line.
inline int64_t strip_clocks(int64_t blocks, int64_t rows) { return (blocks + 131) / 132 * (4000 + 2016 * rows); }

// The cut that is predicted to be fastest on 132 multiprocessors, whatever the device: one shape, one plan.
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
