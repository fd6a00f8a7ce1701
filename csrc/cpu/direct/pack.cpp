// Packs weights in the order in which the kernels read them:
//   f32    [panel][block][tap][16 channels][32 filters]
//   others [panel][block][tap][part, last first][2 halves of 16 filters][16 pairs of channels][16 filters][2]
#include <cstring>

#include "cpu/base/bf16.h"
#include "cpu/base/pages.h"
#include "cpu/base/parallel.h"
#include "cpu/direct/direct.h"

namespace resnet_fused::cpu {
int64_t direct_packed_size(const DirectShape& shape) {
  const int64_t panels = (shape.k + kDirectPanel - 1) / kDirectPanel, blocks = shape.blocks();
  return panels * blocks * shape.taps() * shape.parts() * kDirectPanel * kDirectLine;
}

void direct_pack(const DirectShape& shape, const void* weight, uint16_t* packed) {
  const int64_t panels = (shape.k + kDirectPanel - 1) / kDirectPanel, blocks = shape.blocks();
  const int64_t taps = shape.taps();
  constexpr int64_t kTile = 16 * 32;
  prefer_large_pages(packed, direct_packed_size(shape) * static_cast<int64_t>(sizeof(uint16_t)));
  std::memset(packed, 0, sizeof(uint16_t) * direct_packed_size(shape));
  parallel_for(panels * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k0 = i / blocks * kDirectPanel, c0 = i % blocks * shape.block();
      for (int64_t k = k0; k < shape.k && k < k0 + kDirectPanel; ++k) {
        for (int64_t c = c0; c < shape.c && c < c0 + shape.block(); ++c) {
          const int64_t from = (k * shape.c + c) * taps;
          if (shape.format == DirectFormat::f32) {
            float* to = reinterpret_cast<float*>(packed) + (i * taps * 16 + c - c0) * kDirectPanel + k - k0;
            for (int64_t tap = 0; tap < taps; ++tap) {
              to[tap * 16 * kDirectPanel] = static_cast<const float*>(weight)[from + tap];
            }
            continue;
          }
          uint16_t* to = packed + i * taps * shape.parts() * 2 * kTile + (k - k0) / 16 * kTile +
                         ((c - c0) / 2 * 16 + (k - k0) % 16) * 2 + (c - c0) % 2;
          for (int64_t tap = 0; tap < taps; ++tap) {
            if (shape.is_bf16()) {
              to[tap * 2 * kTile] = static_cast<const uint16_t*>(weight)[from + tap];
              continue;
            }
            float left = static_cast<const float*>(weight)[from + tap];
            for (int part = 0; part < shape.parts(); ++part) {
              const uint16_t word = bf16_of(left);
              to[((tap + 1) * shape.parts() - 1 - part) * 2 * kTile] = word;
              left -= float_of(word);
            }
          }
        }
      }
    }
  });
}

}  // namespace resnet_fused::cpu
