#include "emulator/hopper/early.h"

#include <algorithm>
#include <string>

#include "emulator/core/machine.h"

namespace emu {

void Early::launch(bool early) {
  std::swap(before_, written_);
  written_.clear();
  early_ = early;
  if (!early) return;
  std::sort(before_.begin(), before_.end());
  size_t kept = 0;
  for (const auto& range : before_) {
    if (kept > 0 && range.first <= before_[kept - 1].second) {
      before_[kept - 1].second = std::max(before_[kept - 1].second, range.second);
    } else {
      before_[kept++] = range;
    }
  }
  before_.resize(kept);
}

bool Early::written_before(const void* p, size_t bytes) const {
  const auto first = reinterpret_cast<uintptr_t>(p);
  const auto next = std::upper_bound(before_.begin(), before_.end(), std::make_pair(first + bytes - 1, UINTPTR_MAX));
  return next != before_.begin() && std::prev(next)->second > first;
}

void Early::read(const char* what, const void* p, size_t bytes) {
  if (!machine.lane().waited && written_before(p, bytes)) {
    machine.fail(std::string(what) + " before grid_wait of what the kernel before writes");
  }
}

// A wait does not allow such a read, because the kernel had begun before it.
void Early::read_only(const void* p, size_t bytes) {
  if (early_ && written_before(p, bytes)) machine.fail("ld.global.nc of what the kernel before writes");
}

void Early::write(const char* what, const void* p, size_t bytes) {
  if (!machine.lane().waited) {
    machine.fail(std::string(what) + " before grid_wait: the kernel before may still read there");
  }
  const auto first = reinterpret_cast<uintptr_t>(p);
  if (!written_.empty() && written_.back().second == first) {
    written_.back().second = first + bytes;
  } else {
    written_.emplace_back(first, first + bytes);
  }
}

void Early::wait() { machine.lane().waited = true; }

void Early::trigger() {
  if (!machine.lane().waited) machine.fail("grid_trigger before grid_wait: then two kernels ahead may still run");
}

}  // namespace emu
