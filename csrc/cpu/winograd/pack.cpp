#include <cstring>

#include "cpu/base/bf16.h"
#include "cpu/base/parallel.h"
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/points.h"
#include "cpu/winograd/winograd.h"

namespace resnet_fused::cpu {
namespace {

// G of the m + 2 points. Row p is (1, p, p^2) / prod (p - q) over the other finite points q. Infinity is (0, 0, 1).
constexpr double kG2[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
constexpr double kG4[6][3] = {{1, 0, 0},
                              {1 / kNormA, kPointA / kNormA, kPointA * kPointA / kNormA},
                              {1 / kNormA, -kPointA / kNormA, kPointA * kPointA / kNormA},
                              {1 / kNormB, kPointB / kNormB, kPointB * kPointB / kNormB},
                              {1 / kNormB, -kPointB / kNormB, kPointB * kPointB / kNormB},
                              {0, 0, 1}};

// G g G^T of the 32 filters of one panel at one input channel. The filters lie side by side, so that the loops
// vectorise. `store(point, lane, value)` takes the results.
template <int kPoints, class Store>
void transform(const double (&g)[kPoints][3], const double (&filter)[9][kWinogradPanel], const Store& store) {
  for (int i = 0; i < kPoints; ++i) {
    double row[3][kWinogradPanel];
    for (int s = 0; s < 3; ++s) {
      for (int lane = 0; lane < kWinogradPanel; ++lane) {
        row[s][lane] = g[i][0] * filter[s][lane] + g[i][1] * filter[3 + s][lane] + g[i][2] * filter[6 + s][lane];
      }
    }
    for (int j = 0; j < kPoints; ++j) {
      for (int lane = 0; lane < kWinogradPanel; ++lane) {
        store(i * kPoints + j, lane, g[j][0] * row[0][lane] + g[j][1] * row[1][lane] + g[j][2] * row[2][lane]);
      }
    }
  }
}

}  // namespace

int64_t winograd_panel_size(const WinogradShape& shape, WinogradWeights weights) {
  const int64_t each = weights == WinogradWeights::taps ? 9 : (shape.m + 2) * (shape.m + 2);
  return kWinogradPanel * shape.depth() * each;
}

int64_t winograd_packed_size(const WinogradShape& shape, WinogradWeights weights) {
  return (shape.k + kWinogradPanel - 1) / kWinogradPanel * winograd_panel_size(shape, weights);
}

void winograd_pack(const WinogradShape& shape, WinogradWeights weights, const float* weight, const float* scale,
                   float* packed) {
  const int64_t k = shape.k, c = shape.c, panels = (k + kWinogradPanel - 1) / kWinogradPanel;
  const bool bf16 = shape.dtype == DType::bf16;
  const int64_t point_stride = shape.depth() * kWinogradPanel;
  const int64_t panel_size = winograd_panel_size(shape, weights);
  parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t k0 = panel * kWinogradPanel, lanes = k - k0 < kWinogradPanel ? k - k0 : kWinogradPanel;
      double filter[9][kWinogradPanel] = {};
      float* to = packed + panel * panel_size;
      if (bf16) std::memset(to, 0, panel_size * sizeof(float));  // the last channel of an odd number has no partner
      for (int64_t ci = 0; ci < c; ++ci) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          const double factor = scale ? scale[k0 + lane] : 1.0;
          for (int tap = 0; tap < 9; ++tap) filter[tap][lane] = weight[((k0 + lane) * c + ci) * 9 + tap] * factor;
        }
        if (weights == WinogradWeights::taps) {
          for (int tap = 0; tap < 9; ++tap) {
            float* row = to + (ci * 9 + tap) * kWinogradPanel;
            for (int lane = 0; lane < kWinogradPanel; ++lane) row[lane] = static_cast<float>(filter[tap][lane]);
          }
          continue;
        }
        const auto store = [&](int64_t point, int lane, double value) {
          if (bf16) {
            auto* pairs = reinterpret_cast<uint16_t*>(to + point * point_stride + ci / 2 * kWinogradPanel);
            pairs[2 * lane + ci % 2] = bf16_of(static_cast<float>(value));
          } else {
            to[point * point_stride + ci * kWinogradPanel + lane] = static_cast<float>(value);
          }
        };
        if (shape.m == 2) {
          transform(kG2, filter, store);
        } else {
          transform(kG4, filter, store);
        }
      }
    }
  });
}

}  // namespace resnet_fused::cpu
