// What amx_conv.cpp calls, once with the matrix unit and once without (amx_tiles.h).
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

struct AmxGemm {
  const uint16_t* a;                  // packed input at the first pixel
  int64_t block_stride, part_stride;  // values from a block of channels, a part, to the next
  const int64_t* taps;                // values from the first pixel
  int64_t tap_count, blocks;
  const uint16_t* b;  // packed weights of the panel: [block][tap][part, last first][2][16][16][2]
  float* c;           // sums [32 pixels][32 channels]
  bool add;           // to what is in c
  const char* ahead;  // weights to be read later; so many lines of 64 bytes of them are requested for each product
  int64_t ahead_lines;
};

struct AmxOutput {
  const float* c;      // sums, 32 apart
  const float* shift;  // of the panel
  const void* residual;
  void* out;
  int64_t pixel_stride, pixels;
  int channels;  // at most 32
  bool relu;
};

struct AmxKernels {
  // `pixels` pixels of `channels` channels, `from_stride` values apart, into blocks of 32 channels and their parts.
  using Pack = void (*)(const void* from, int64_t from_stride, int64_t pixels, int64_t channels, uint16_t* to,
                        int64_t block_stride, int64_t part_stride);
  void (*begin)(void* saved);  // of a task: tiles of 16 rows of 64 bytes; saved: 64 bytes for what there was
  void (*end)(const void* saved);
  Pack pack3, pack1;
  void (*gemm3)(const AmxGemm&);
  void (*gemm1)(const AmxGemm&);
  void (*output3)(const AmxOutput&);
  void (*output1)(const AmxOutput&);
};

}  // namespace resnet_fused::cpu
