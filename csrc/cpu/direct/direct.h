// Convolution of NHWC activations by the direct sum, for any filter and one group, with the rest of a folded layer: out
// = activation(conv(x, weight) + shift [+ residual]), summed in float32 and rounded once. It runs on vectors, or on the
// matrix unit of a CPU (AMX).
//
// The matrix unit multiplies bfloat16. A float32 is the exact sum of three bfloat16 of 8 bits each, so a float32
// product is six products of parts. Three more products are below 2^-25 of the product and are left out. Six is less
// than sixteen, the factor by which the unit is faster than AVX-512. See docs/design/amx.md.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/base/folded.h"
#include "cpu/base/team.h"

namespace resnet_fused::cpu {

// The format of the operands. On vectors: float32 or bfloat16. On the matrix unit: float32 as three bfloat16, or
// bfloat16.
enum class DirectFormat { f32, bf16, amx_f32, amx_bf16 };

// A sum in registers has at most so many lines and is then added to memory. A longer sum has a larger error.
constexpr int64_t kDirectSumLines = 9;

// One group. Stride, padding and dilation are the same on both axes.
struct DirectShape : Convolution {
  DirectFormat format;
  int64_t stride() const { return stride_h; }
  int64_t padding() const { return pad_h; }
  int64_t dilation() const { return dilation_h; }
  int64_t taps() const { return r * s; }
  bool is_bf16() const { return format == DirectFormat::bf16 || format == DirectFormat::amx_bf16; }
  bool on_vectors() const { return format == DirectFormat::f32 || format == DirectFormat::bf16; }
  int64_t parts() const { return format == DirectFormat::amx_f32 ? 3 : 1; }
  int64_t block() const { return format == DirectFormat::f32 ? 16 : 32; }  // input channels of a line
  // Whether a 1x1 convolution reads the map itself and not a copy in lines. Pixels that lie a multiple of 4 KB apart
  // would share few sets of the L1 cache.
  bool in_place() const {
    const bool one_to_one = r * s == 1 && stride() == 1 && padding() == 0;
    const int64_t pixel = c * (is_bf16() ? 2 : 4);
    return on_vectors() && one_to_one && pixel % 4 == 0 && pixel % 4096 != 0;
  }
  int64_t blocks() const { return (c + block() - 1) / block(); }
};

// Packed values are counted in words of 16 bits: a bfloat16 is one word, a float two.
constexpr int64_t kDirectLine = 32;   // words of a pixel in a block of channels: a cache line, and a row of a tile
constexpr int64_t kDirectPanel = 32;  // output channels of a kernel call: two 512-bit vectors, or two tiles

// How the packed input lies in memory. A plane holds the pixels with one remainder of the stride, in rows of `pitch`
// pixels and in blocks of one line per pixel. Every tap of output pixel o = y * pitch + x reads pixel o + offset(tap)
// of a plane. No tap therefore needs a mask, and neighbouring output pixels are one call. Neighbouring rows share the
// zeros between them.
struct DirectPlan {
  DirectShape shape;
  int slots;          // threads that run it, each with memory of its own
  bool split_panels;  // true: slots share one packed input and split the output channels. false: they split the pixels
  int64_t blocks, panels;
  int64_t pixels;         // at most, of a call of the kernel
  int64_t pitch, shared;  // pitch: pixels from a row to the next. shared: pixels that belong to two rows
  std::vector<int64_t> phase_y, phase_x;       // per plane: remainder of the row and of the column
  std::vector<int64_t> tap_plane, tap_offset;  // per tap: its plane, and its distance from o in pixels
  int64_t extra_rows;                          // rows of a plane beyond the rows of the output
  int64_t rows;                                // at most, output rows packed at a time
  int64_t plane;                               // pixels of a plane
  int64_t segment;                             // words of the packed input of `rows` output rows of one image
  int64_t segments;  // segments packed at a time; a slot reads the weights once for all of them
  int64_t chunk;  // blocks of channels: their weights serve all packed pixels before the next blocks' weights are read
  int64_t sums;   // floats: the sums of a panel for all packed pixels
  // true: a call's pixels meet all panels before the next pixels. false: a panel meets all pixels first
  bool pixels_first;
};

DirectPlan direct_plan(const DirectShape& shape, int threads);

// Size in words.
int64_t direct_packed_size(const DirectShape& shape);
int64_t direct_workspace_size(const DirectPlan& plan);

// weight: [k, c, r, s] contiguous, float32 or bfloat16.
void direct_pack(const DirectShape& shape, const void* weight, uint16_t* packed);

// Adds the loops of a convolution. Pointers are kept, and the rest is copied. x, residual and out are float32 or
// bfloat16, NHWC. out must not be x. workspace is aligned to 64 bytes. The bits of the result do not depend on threads,
// batch or position. An output is NaN where a pixel that it reads is NaN. In amx_f32 it is also NaN where that pixel is
// an infinity, or rounds to an infinity in bfloat16 (above 3.39e38), and subnormal parts are 0.
void direct_loops(DirectPlan plan, const void* x, const uint16_t* packed, const FoldedEpilogue& epilogue, void* out,
                  uint16_t* workspace, Loops& loops);
// The same, where shape.in_place() holds; direct_loops calls it.
Loop direct_in_place(const DirectShape& shape, const void* x, const uint16_t* packed, const FoldedEpilogue& epilogue,
                     void* out, int slots);

}  // namespace resnet_fused::cpu
