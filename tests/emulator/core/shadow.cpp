#include "emulator/core/shadow.h"

#include <algorithm>
#include <cstring>

namespace emu {

// Whether the instruction takes addresses of other blocks.
static bool reaches_others(const char* what) {
  for (const char* name : {"ld.shared::cluster", "mbarrier.arrive.shared::cluster", "multicast copy"}) {
    if (std::strcmp(what, name) == 0) return true;
  }
  return false;
}

void Shadow::reset(uint32_t base, size_t bytes, int warps, int blocks) {
  base_ = base;
  bytes_ = bytes;
  stride_ = (bytes + 31) / 16 * 16;
  warps_ = warps;
  blocks_ = blocks;
  memory_.assign(stride_ * blocks, 0xFF);
  const size_t cells = stride_ / kGrain * blocks;
  cells_.assign(cells, Cell{});
  reads_.resize(cells * warps * blocks);  // Cell::readers masks outdated entries
  for (int w = 0; w < kActors; ++w) {
    known_[w] = Clocks{};
    known_[w].at[w] = 1;
    over_[w] = Clocks{};
  }
  for (auto& lanes : fenced_) std::fill(lanes, lanes + 32, 0);
  for (Clocks& clocks : leaving_) clocks = Clocks{};
  for (bool& left : left_) left = false;
}

void Shadow::fail(const char* what, const std::string& why, uint32_t addr, Who who, const Cell* cell) const {
  std::string text = std::string(what) + " at shared address base+" +
                     std::to_string(static_cast<int64_t>(addr % kThere) - static_cast<int64_t>(base_)) +
                     (addr >= kThere ? " of block " + std::to_string(addr / kThere - 1) : "") + " by warp " +
                     std::to_string(who.warp) + " lane " + std::to_string(who.lane) + ": " + why;
  if (cell != nullptr && (cell->write_clock != 0 || cell->in_flight)) {
    text += cell->warp >= kMaxWarps
                ? std::string(" (last written by a bulk copy)")
                : " (last written by warp " + std::to_string(cell->warp) + " lane " + std::to_string(cell->lane) + ")";
  }
  throw Fault(text);
}

size_t Shadow::offset(const char* what, uint32_t addr, int bytes, Who who) const {
  if (addr % static_cast<uint32_t>(bytes) != 0) fail(what, "not aligned to its size", addr, who, nullptr);
  size_t rank = who.warp / warps_;
  if (addr >= kThere) {
    if (!reaches_others(what)) fail(what, "the address is one of a cluster", addr, who, nullptr);
    rank = addr / kThere - 1;
    if (rank >= static_cast<size_t>(blocks_)) fail(what, "no such block in the cluster", addr, who, nullptr);
    if (left_[rank]) fail(what, "the block whose memory it was has left", addr, who, nullptr);
    addr %= kThere;
  }
  if (addr < base_ || addr - base_ + static_cast<uint64_t>(bytes) > bytes_) {
    fail(what, "outside the " + std::to_string(bytes_) + " bytes of shared memory", addr, who, nullptr);
  }
  return rank * stride_ + (addr - base_);
}

unsigned char* Shadow::at(const char* what, uint32_t addr, int bytes, Who who) {
  return memory_.data() + offset(what, addr, bytes, who);
}

void Shadow::read(const char* what, uint32_t addr, int bytes, Who who) {
  const size_t first = offset(what, addr, bytes, who) / kGrain, last = first + bytes / kGrain;
  const Clocks& known = known_[who.warp];
  const uint32_t now = known.at[who.warp];
  for (size_t i = first; i < last; ++i) {
    Cell& cell = cells_[i];
    if (cell.in_flight) fail(what, "reads a cp.async that has not been waited for", addr, who, &cell);
    if (cell.write_clock == 0) fail(what, "reads bytes never written", addr, who, &cell);
    const bool ordered = cell.warp == who.warp ? cell.lane == who.lane || cell.write_clock < now
                                               : cell.write_clock <= known.at[cell.warp];
    if (!ordered) fail(what, "race: reads what another thread wrote without a barrier in between", addr, who, &cell);
    Read& mine = last_read(i, who.warp);
    const uint32_t bit = 1u << who.warp;
    const bool again = (cell.readers & bit) != 0 && mine.clock == now && mine.lane != who.lane;
    mine = Read{now, again ? kMany : who.lane};
    cell.readers |= bit;
  }
}

void Shadow::record_write(const char* what, uint32_t addr, int bytes, Who who) {
  const Clocks &known = known_[who.warp], &over = over_[who.warp];
  const uint32_t now = known.at[who.warp];
  const size_t first = offset(what, addr, bytes, who) / kGrain, last = first + bytes / kGrain;
  for (size_t i = first; i < last; ++i) {
    Cell& cell = cells_[i];
    if (cell.in_flight) fail(what, "writes where a cp.async is still in flight", addr, who, &cell);
    if (cell.products) fail(what, "writes what a product is still reading, or a store", addr, who, &cell);
    if (cell.write_clock != 0) {
      const bool ordered = cell.warp == who.warp   ? cell.lane == who.lane || cell.write_clock < now
                           : cell.warp < kMaxWarps ? cell.write_clock <= known.at[cell.warp]
                                                   : cell.write_clock <= over.at[cell.warp];  // a reader has waited
      if (!ordered) fail(what, "race: two threads write without a barrier in between", addr, who, &cell);
    }
    for (uint32_t left = cell.readers; left != 0; left &= left - 1) {
      const int warp = __builtin_ctz(left);
      const Read& read = last_read(i, warp);
      const bool ordered = warp == who.warp ? read.lane == who.lane || read.clock < now : read.clock <= over.at[warp];
      if (!ordered) {
        fail(what, "race: overwrites what warp " + std::to_string(warp) + " may still read", addr, who, &cell);
      }
    }
    cell.readers = 0;
    cell.write_clock = now;
    cell.warp = static_cast<uint8_t>(who.warp);
    cell.lane = static_cast<uint8_t>(who.lane);
  }
}

void Shadow::write(const char* what, uint32_t addr, int bytes, Who who) { record_write(what, addr, bytes, who); }

void Shadow::copy_issued(const char* what, uint32_t addr, int bytes, Who who) {
  std::memset(at(what, addr, bytes, who), 0xFF, bytes);
  record_write(what, addr, bytes, who);
  for (size_t i = offset(what, addr, bytes, who) / kGrain, last = i + bytes / kGrain; i < last; ++i)
    cells_[i].in_flight = 1;
}

void Shadow::copy_landed(const char* what, uint32_t addr, int bytes, Who who) {
  for (size_t i = offset(what, addr, bytes, who) / kGrain, last = i + bytes / kGrain; i < last; ++i)
    cells_[i].in_flight = 0;
  write(what, addr, bytes, who);  // the issuing thread sees the data from here on, other threads after a barrier
}

void Shadow::bulk_issued(const char* what, uint32_t addr, int bytes, Who who) { copy_issued(what, addr, bytes, who); }

void Shadow::bulk_landed(uint32_t addr, const unsigned char* data, int bytes, int source) {
  const int actor = kMaxWarps + source;
  const size_t first = (addr / kThere - 1) * stride_ + addr % kThere - base_;  // every address names its block
  for (size_t i = first / kGrain, last = i + bytes / kGrain; i < last; ++i) {
    Cell& cell = cells_[i];
    cell.in_flight = 0;
    cell.readers = 0;
    cell.write_clock = known_[actor].at[actor];
    cell.warp = static_cast<uint8_t>(actor);
    cell.lane = 0;
  }
  std::memcpy(memory_.data() + first, data, bytes);
}

void Shadow::product_issued(const char* what, uint32_t addr, int bytes, Who who) {
  read(what, addr, bytes, who);
  for (size_t i = offset(what, addr, bytes, who) / kGrain, last = i + bytes / kGrain; i < last; ++i)
    ++cells_[i].products;
}

void Shadow::product_done(const char* what, uint32_t addr, int bytes, Who who) {
  for (size_t i = offset(what, addr, bytes, who) / kGrain, last = i + bytes / kGrain; i < last; ++i)
    --cells_[i].products;
  read(what, addr, bytes, who);
}

void Shadow::store_issued(const char* what, uint32_t addr, int bytes, Who who) {
  product_issued(what, addr, bytes, who);
  for (size_t i = offset(what, addr, bytes, who) / kGrain, last = i + bytes / kGrain; i < last; ++i) {
    const Cell& cell = cells_[i];
    if (cell.warp < kMaxWarps && cell.write_clock > fenced_[cell.warp][cell.lane]) {
      fail(what, "reads what was written without a fence_async after it", addr, who, &cell);
    }
  }
}

void Shadow::warp_leaves(int warp) {
  leaving_[warp / warps_].join(known_[warp]);
  leaving_[warp / warps_].join(over_[warp]);
}

void Shadow::block_leaves(int rank) {
  left_[rank] = true;
  if (blocks_ == 1) return;
  const uint32_t own = (warps_ < 32 ? (1u << warps_) - 1 : ~0u) << rank * warps_;
  for (size_t i = rank * stride_ / kGrain, last = i + bytes_ / kGrain; i < last; ++i) {
    for (uint32_t left = cells_[i].readers & ~own; left != 0; left &= left - 1) {
      const int warp = __builtin_ctz(left);
      if (last_read(i, warp).clock <= leaving_[rank].at[warp]) continue;
      throw Fault("the block of rank " + std::to_string(rank) + " leaves while warp " + std::to_string(warp) +
                  " of its cluster may still read its shared memory");
    }
  }
}

}  // namespace emu
