// Stores by tensor maps: boxes of shared memory into a matrix.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>

#include "emulator/core/machine.h"
#include "emulator/hopper/hopper.h"

namespace emu {

static bool same(Who a, Who b) { return a.warp == b.warp && a.lane == b.lane; }

void Hopper::store(uint32_t src, const BoxMap& map, int column, int row) {
  if (src % kBoxRow != 0) machine.fail("bulk store from an address that is no multiple of 128");
  const Who who = machine.lane().who;
  for (int i = 0; i < map.box[1]; ++i) machine.shadow.store_issued("bulk store", src + i * kBoxRow, kBoxRow, who);
  stores_.push_back(Store{src, map, column, row, who, false});
  record(stores_.back());
}

// Nothing orders two bulk stores, not even a wait of the thread that issued both: each place may be written once.
void Hopper::record(const Store& store) {
  const BoxMap& map = store.map;
  const int64_t from = std::max<int64_t>(store.column, 0);
  const int64_t to = std::min<int64_t>(int64_t{store.column} + map.box[0], map.size[0]);
  for (int64_t row = std::max<int64_t>(store.row, 0); from < to && row < map.size[1]; ++row) {
    if (row >= int64_t{store.row} + map.box[1]) break;
    const auto* line = static_cast<const unsigned char*>(map.data) + row * map.stride[1];
    const auto *first = line + from * map.stride[0], *end = line + to * map.stride[0];
    const auto next = stored_.lower_bound(first);
    const bool before = next != stored_.begin() && std::prev(next)->second > first;
    if (before || (next != stored_.end() && next->first < end)) {
      machine.fail("bulk store where another one of this kernel writes: PTX gives no order of the two");
    }
    stored_.emplace_hint(next, first, end);
  }
}

void Hopper::store_commit() {
  for (Store& store : stores_) store.committed |= same(store.who, machine.lane().who);
}

void Hopper::store_wait_read() {
  for (size_t i = 0; i < stores_.size();) {
    const Store store = stores_[i];
    if (!store.committed || !same(store.who, machine.lane().who)) {
      ++i;
      continue;
    }
    stores_.erase(stores_.begin() + static_cast<int64_t>(i));
    const BoxMap& map = store.map;
    for (int row = 0; row < map.box[1]; ++row) {
      const uint32_t line = store.src + row * kBoxRow;
      machine.shadow.store_done("bulk store", line, kBoxRow, store.who);
      if (store.row + row < 0 || store.row + row >= map.size[1]) continue;
      auto* to = static_cast<unsigned char*>(const_cast<void*>(map.data)) + (store.row + row) * map.stride[1];
      for (int j = 0; j < map.box[0]; ++j) {
        const int64_t column = int64_t{store.column} + j;
        if (column < 0 || column >= map.size[0]) continue;
        const uint32_t plain = line + static_cast<uint32_t>(j * map.stride[0]), from = plain ^ (plain >> 7 & 7) << 4;
        std::memcpy(to + column * map.stride[0],
                    machine.shadow.at("bulk store", from, static_cast<int>(map.stride[0]), store.who), map.stride[0]);
      }
    }
  }
}

void Hopper::stores_end() {
  for (const Store& store : stores_) {
    if (same(store.who, machine.lane().who)) machine.fail("the thread ends with a bulk store it has not waited for");
  }
}

}  // namespace emu
