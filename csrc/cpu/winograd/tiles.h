// The tiles of a block and their order.
#pragma once

#include <array>
#include <utility>

#include "cpu/winograd/points.h"
#include "cpu/winograd/winograd.h"

namespace resnet_fused::cpu {

struct WinogradTile {
  int64_t image, y, x;  // position of the first output
  int height, width;    // outputs; the last tile of an axis may reach past the image
};

// `count` tiles from tile `first` of the batch on. Tiles that lack a row of points come last. Tiles that lack a column
// of points come first and last. The tiles that have a given point are therefore always neighbours.
class WinogradBlock {
 public:
  static constexpr int64_t kMost = 128;  // the largest block of winograd/plan.cpp, for taps of F(2x2)

  WinogradBlock(const WinogradPlan& plan, int64_t first, int64_t count) : count_(count), m_(plan.shape.m) {
    const WinogradAxis &rows = plan.rows, &columns = plan.columns;
    const int64_t row = first / columns.count;
    const auto each = [&](const auto& use) {
      int64_t image = row / rows.count, y = row % rows.count, x = first % columns.count;
      for (int64_t i = 0; i < count; ++i) {
        use(WinogradTile{image, rows.begin(y), columns.begin(x), rows.size(y), columns.size(x)});
        if (++x < columns.count) continue;
        x = 0;
        if (++y < rows.count) continue;
        y = 0;
        ++image;
      }
    };
    each([&](const WinogradTile& tile) { ++ends_[kind(tile)]; });
    int64_t next[kKinds], end = 0;
    for (int i = 0; i < kKinds; ++i) {
      next[i] = end;
      end = ends_[i] += end;
    }
    each([&](const WinogradTile& tile) { tiles_[next[kind(tile)]++] = tile; });
  }

  int64_t count() const { return count_; }
  const WinogradTile& operator[](int64_t i) const { return tiles_[i]; }

  // The tiles [first, second) that have point `point`.
  std::pair<int64_t, int64_t> with(int64_t point) const {
    if (m_ == 2) return {0, count_};
    const bool high = point / 6 == kPointLeftOut, wide = point % 6 == kPointLeftOut;
    return {wide ? ends_[kNarrow] : 0, high ? ends_[kWhole] : wide ? ends_[kLow] : count_};
  }

 private:
  enum Kind { kNarrow, kWhole, kLow, kSmall, kKinds };
  Kind kind(const WinogradTile& tile) const {
    const bool narrow = tile.width < m_;
    return tile.height < m_ ? (narrow ? kSmall : kLow) : narrow ? kNarrow : kWhole;
  }

  const int64_t count_;
  const int m_;
  int64_t ends_[kKinds] = {};
  std::array<WinogradTile, kMost> tiles_;
};

}  // namespace resnet_fused::cpu
