// Weights in the order in which the kernel reads them: [panel][block][tap][part, last first][2 tiles][16 pairs][16
// filters][2].
#include <cstring>

#include "amx.h"
#include "amx_words.h"
#include "pages.h"
#include "parallel.h"

namespace resnet_fused::cpu {
int64_t amx_packed_size(const AmxShape& shape) {
  const int64_t panels = (shape.k + kAmxPanel - 1) / kAmxPanel, blocks = (shape.c + kAmxChannels - 1) / kAmxChannels;
  return panels * blocks * shape.taps() * shape.parts * kAmxPanel * kAmxChannels;
}

void amx_pack(const AmxShape& shape, const void* weight, uint16_t* packed) {
  const int64_t panels = (shape.k + kAmxPanel - 1) / kAmxPanel, blocks = (shape.c + kAmxChannels - 1) / kAmxChannels;
  const int64_t taps = shape.taps();
  constexpr int64_t kTile = 16 * 32;
  prefer_large_pages(packed, amx_packed_size(shape) * static_cast<int64_t>(sizeof(uint16_t)));
  std::memset(packed, 0, sizeof(uint16_t) * amx_packed_size(shape));
  parallel_for(panels * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k0 = i / blocks * kAmxPanel, c0 = i % blocks * kAmxChannels;
      for (int64_t k = k0; k < shape.k && k < k0 + kAmxPanel; ++k) {
        for (int64_t c = c0; c < shape.c && c < c0 + kAmxChannels; ++c) {
          const int64_t from = (k * shape.c + c) * taps;
          uint16_t* to = packed + i * taps * shape.parts * 2 * kTile + (k - k0) / 16 * kTile +
                         ((c - c0) / 2 * 16 + (k - k0) % 16) * 2 + (c - c0) % 2;
          for (int64_t tap = 0; tap < taps; ++tap) {
            if (shape.parts == 1) {
              to[tap * 2 * kTile] = static_cast<const uint16_t*>(weight)[from + tap];
              continue;
            }
            float left = static_cast<const float*>(weight)[from + tap];
            for (int part = 0; part < shape.parts; ++part) {
              const uint16_t half = rounded(left);
              to[((tap + 1) * shape.parts - 1 - part) * 2 * kTile] = half;
              left -= float_of(half);
            }
          }
        }
      }
    }
  });
}

}  // namespace resnet_fused::cpu
