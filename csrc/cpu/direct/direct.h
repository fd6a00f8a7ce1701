// Any convolution of NHWC activations, one group, by its direct sum, with everything that follows a convolution in a
// folded ResNet: out = activation(conv(x, weight) + shift [+ residual]), summed in float32 and rounded once. On
// vectors, or on the matrix unit of a CPU (AMX).
//
// The matrix unit multiplies bfloat16. A float32 is the exact sum of three of them, 8 bits each, so a float32 product
// is six products of parts (the three that are left out are below 2^-25 of it): fewer than the sixteen by which the
// unit is faster than AVX-512. See docs/design/amx.md.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/base/folded.h"

namespace resnet_fused::cpu {

// What is multiplied: float32 or bfloat16 on vectors; on the matrix unit float32 as three bfloat16, or bfloat16.
enum class DirectFormat { f32, bf16, amx_f32, amx_bf16 };

// One group; stride, padding and dilation are those of both axes.
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
  int64_t blocks() const { return (c + block() - 1) / block(); }
};

// Packed values are counted in words of 16 bits: a bfloat16 is one, a float two.
constexpr int64_t kDirectLine = 32;   // of a pixel: a cache line, a row of a tile
constexpr int64_t kDirectPanel = 32;  // output channels of a call of the kernel: two 512-bit vectors, or tiles

// One plane of the packed input holds the pixels that one remainder of the stride leaves, in rows of `pitch`, in blocks
// of one line a pixel. There every tap of every output pixel o = y * pitch + x is the pixel o + offset(tap): no tap
// needs a mask, and pixels that follow each other are one call. Neighbouring rows share the zeros between them.
struct DirectPlan {
  DirectShape shape;
  int tasks;
  bool split_panels;  // tasks share one packed input and split the output channels; otherwise they split the pixels
  int64_t blocks, panels;
  int64_t pixels;                              // of a call of the kernel, at most
  int64_t pitch, shared;                       // pixels from a row to the next, of these so many belong to both
  std::vector<int64_t> phase_y, phase_x;       // of each plane: remainder of the row and the column
  std::vector<int64_t> tap_plane, tap_offset;  // of each tap: its plane, and its pixels from o
  int64_t extra_rows;                          // rows of a plane beyond those of the output
  int64_t rows;                                // output rows packed at a time, at most
  int64_t plane;                               // pixels of a plane
  int64_t segment;                             // words of the packed input of `rows` output rows of one image
  int64_t segments;                            // packed at a time, so that weights are read once for all of them
  int64_t chunk;      // blocks of channels whose weights are used for all of these before the next ones
  int64_t sums;       // floats: the sums of a panel for all of these
  bool pixels_first;  // a call's pixels meet all panels before the next ones, and not a panel all pixels
};

DirectPlan direct_plan(const DirectShape& shape, int threads);

// In words.
int64_t direct_packed_size(const DirectShape& shape);
int64_t direct_workspace_size(const DirectPlan& plan);

// weight: [k, c, r, s] contiguous, float32 or bfloat16.
void direct_pack(const DirectShape& shape, const void* weight, uint16_t* packed);

// x, residual, out: float32 or bfloat16, NHWC; out must not be x. workspace: aligned to 64 bytes. The bits do not
// depend on threads, batch or position. A NaN comes out of the pixels that read it. In amx_f32 an infinity does so as a
// NaN, and so does a value that rounds to one in bfloat16 (above 3.39e38); subnormal parts are 0.
void direct_run(const DirectPlan& plan, const void* x, const uint16_t* packed, const FoldedEpilogue& epilogue,
                void* out, uint16_t* workspace);

}  // namespace resnet_fused::cpu
