#include "emulator/hopper/hopper.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "emulator/core/machine.h"
#include "emulator/core/mma.h"

namespace emu {

static const float kNan = std::numeric_limits<float>::quiet_NaN();
static constexpr uint32_t kRow = kBoxRow, kAtom = 1024;  // bytes of an operand's row; bytes of the swizzle's period

void Hopper::reset() {
  mbarriers_.clear();
  sources_ = 0;
  copies_.clear();
  stores_.clear();
  for (Products& p : products_) p = Products{};
  for (auto& log : issued_) log.clear();
  for (size_t& n : issues_) n = 0;
}

// Barriers.

// An address that contains its block.
static uint32_t named(uint32_t addr) {
  const int rank = machine.shadow.rank_of(addr, machine.lane().who);
  return addr % kThere + kThere * static_cast<uint32_t>(rank + 1);
}

void Hopper::init(uint32_t addr, int arrivals) {
  const Who who = machine.lane().who;
  machine.shadow.write("mbarrier.init", addr, 8, who);
  if (arrivals < 1) machine.fail("mbarrier.init of " + std::to_string(arrivals) + " arrivals");
  if (mbarriers_.count(named(addr))) machine.fail("mbarrier.init of a barrier in use");
  mbarriers_[named(addr)] = Mbarrier{arrivals, arrivals, 0, 0, false, machine.rank(), -1, {}, {}, {}, {}, {}};
}

void Hopper::init_fence() {
  for (auto& [addr, barrier] : mbarriers_) barrier.fenced |= barrier.rank == machine.rank();
}

Hopper::Mbarrier& Hopper::at(const char* what, uint32_t addr) {
  machine.shadow.read(what, addr, 8, machine.lane().who);  // must be ordered after the initialisation
  const auto found = mbarriers_.find(named(addr));
  if (found == mbarriers_.end()) machine.fail(std::string(what) + ": no mbarrier there");
  return found->second;
}

void Hopper::arrive(const char* what, uint32_t addr, int64_t expect) {
  Mbarrier& barrier = at(what, addr);
  const bool here = barrier.rank == machine.rank();
  if (!here && !barrier.fenced) machine.fail(std::string(what) + ": an mbarrier whose initialisation was not fenced");
  if (barrier.pending == 0) machine.fail(std::string(what) + ": more arrivals than the barrier counts");
  barrier.bytes += expect;
  --barrier.pending;
  (here ? barrier.gathering : barrier.read_there).join(machine.shadow.publish(machine.lane().who.warp));
  advance(barrier);
}

void Hopper::acquire(const Mbarrier& barrier, Who who) {
  machine.shadow.acquire(who.warp, barrier.passed);
  machine.shadow.acquire_reads(who.warp, barrier.read_passed);
}

void Hopper::advance(Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  barrier.passed.join(barrier.gathering);
  barrier.read_passed.join(barrier.read_there);
  barrier.gathering = barrier.read_there = Clocks{};
  for (Who who : barrier.waiting) {
    acquire(barrier, who);
    machine.wake_lane(who);
  }
  barrier.waiting.clear();
}

void Hopper::wait(uint32_t addr, int parity) {
  Mbarrier& barrier = at("mbarrier wait", addr);
  if (parity != 0 && parity != 1) machine.fail("mbarrier wait for parity " + std::to_string(parity));
  const Who who = machine.lane().who;
  if (static_cast<int>(barrier.phase & 1) != parity) return acquire(barrier, who);  // the phase has completed
  barrier.waiting.push_back(who);
  machine.sleep("mbarrier wait");
}

// Copies.

void Hopper::copy(uint32_t dst, const BoxMap& map, const int (&at)[kBoxRank], uint32_t mbar, uint32_t blocks) {
  if (dst % kRow != 0) machine.fail("bulk copy to an address that is no multiple of 128");
  const int rows = map.box[1] * map.box[2] * map.box[3];
  const Who who = machine.lane().who;
  std::vector<unsigned char> data(rows * kRow, 0);
  for (int row = 0; row < rows; ++row) {  // the second dimension varies fastest
    const int64_t index[kBoxRank] = {0, at[1] + row % map.box[1], at[2] + row / map.box[1] % map.box[2],
                                     at[3] + row / map.box[1] / map.box[2]};
    bool inside = true;
    const unsigned char* line = static_cast<const unsigned char*>(map.data);
    for (int i = 1; i < kBoxRank; ++i) {
      inside &= index[i] >= 0 && index[i] < map.size[i];
      line += index[i] * map.stride[i];
    }
    for (int j = 0; inside && j < map.box[0]; ++j) {
      const int64_t column = int64_t{at[0]} + j;
      if (column < 0 || column >= map.size[0]) continue;  // values outside are zeros
      // The swizzle changes address bits: 16-byte chunk (bits 4 to 6) xor row of eight (bits 7 to 9).
      const uint32_t plain = dst + static_cast<uint32_t>(row * kRow + j * map.stride[0]);
      const uint32_t to = (plain ^ (plain >> 7 & 7) << 4) - dst;
      std::memcpy(&data[to], line + column * map.stride[0], map.stride[0]);
    }
  }
  const char* what = blocks == 0 ? "bulk copy" : "multicast copy";
  if (blocks == 0) blocks = 1u << machine.rank();
  for (uint32_t left = blocks; left != 0; left &= left - 1) {
    const uint32_t there = kThere * static_cast<uint32_t>(__builtin_ctz(left) + 1);
    const bool here = __builtin_ctz(left) == machine.rank();
    const Mbarrier& barrier = this->at(what, here ? mbar : mbar + there);
    if (!barrier.fenced) machine.fail(std::string(what) + " to an mbarrier whose initialisation was not fenced");
    for (int row = 0; row < rows; ++row) machine.shadow.at(what, (here ? dst : dst + there) + row * kRow, kRow, who);
    for (int row = 0; row < rows; ++row) {
      machine.shadow.bulk_issued(what, (here ? dst : dst + there) + row * kRow, kRow, who);
    }
    copies_.push_back(Copy{dst + there, mbar + there, data});
  }
}

void Hopper::land_one() {
  const size_t chosen = machine.random().below(static_cast<uint32_t>(copies_.size()));
  const Copy copy = std::move(copies_[chosen]);
  copies_.erase(copies_.begin() + static_cast<int64_t>(chosen));
  Mbarrier& barrier = mbarriers_.at(copy.mbar);
  if (barrier.source < 0) barrier.source = sources_++;
  if (barrier.source >= kBulkSources) throw Fault("copies land at more mbarriers than the emulator has clocks for");
  machine.shadow.bulk_landed(copy.dst, copy.data.data(), static_cast<int>(copy.data.size()), barrier.source);
  barrier.gathering.join(machine.shadow.bulk_clock(barrier.source));
  barrier.bytes -= static_cast<int64_t>(copy.data.size());
  advance(barrier);
}

void Hopper::block_leaves(int rank) {
  for (const Copy& copy : copies_) {
    if (static_cast<int>(copy.dst / kThere) - 1 == rank) throw Fault("the block ends while a bulk copy is in flight");
  }
}

// Products.

void Hopper::fence() { products_[machine.lane().who.warp].fenced = true; }

void Hopper::issue(const Product& product) {
  const int warp = machine.lane().who.warp, group = warp / 4;
  Products& own = products_[warp];
  if (!own.fenced) machine.fail("wgmma: no wgmma.fence since this warp's registers were last its own");
  auto& log = issued_[group];
  const std::pair<uint64_t, uint64_t> operands_of{product.a, product.b};
  const size_t number = issues_[warp]++;
  if (number == log.size()) log.push_back(operands_of);
  if (log[number] != operands_of) machine.fail("wgmma: the warps of the warpgroup name different operands");
  for (uint64_t descriptor : {product.a, product.b}) {
    const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0 || (descriptor >> 32 & 0x3fff) != kAtom / 16) {
      machine.fail("wgmma: a descriptor of another layout than swizzled rows of 128 bytes");
    }
    if ((start & 0x380) != 0) machine.fail("wgmma: an operand that begins inside of the swizzle's period");
  }
  operands(product, false);
  for (int l = 0; l < 32; ++l) {
    auto& value = own.values[product.d[l]];
    if (value.empty()) value.assign(product.d[l], product.d[l] + product.count);
    std::fill(product.d[l], product.d[l] + product.count, kNan);
  }
  own.open.push_back(product);
}

// Row r of an operand: 16 columns from the descriptor on, in two pieces of 16 bytes.
static uint32_t piece(uint64_t descriptor, int row, int half) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t plain = start + row / 8 * kAtom + row % 8 * kRow + half * 16;
  return plain ^ (plain >> 7 & 7) << 4;
}

void Hopper::operands(const Product& product, bool done) {
  const int warp = machine.lane().who.warp;
  const Who who{warp, 0};
  const auto touch = [&](uint64_t descriptor, int row) {
    for (int half = 0; half < 2; ++half) {
      if (done) {
        machine.shadow.product_done("wgmma", piece(descriptor, row, half), 16, who);
      } else {
        machine.shadow.product_issued("wgmma", piece(descriptor, row, half), 16, who);
      }
    }
  };
  for (int row = 0; row < 16; ++row) touch(product.a, warp % 4 * 16 + row);
  for (int row = 0; row < product.count * 2; ++row) touch(product.b, row);
}

void Hopper::compute(const Product& product) {
  Products& own = products_[machine.lane().who.warp];
  const int warp = machine.lane().who.warp, n = product.count * 2;
  const Who who{warp, 0};
  const auto load = [&](uint64_t descriptor, int row, float (&to)[16]) {
    for (int half = 0; half < 2; ++half) {
      uint16_t bits[8];
      std::memcpy(bits, machine.shadow.at("wgmma", piece(descriptor, row, half), 16, who), 16);
      for (int i = 0; i < 8; ++i) to[8 * half + i] = product.bf16 ? widen_bf16(bits[i]) : f16_table()[bits[i]];
    }
  };
  float a[16][16];
  for (int row = 0; row < 16; ++row) load(product.a, warp % 4 * 16 + row, a[row]);
  for (int column = 0; column < n; ++column) {
    float b[16];
    load(product.b, column, b);
    for (int row = 0; row < 16; ++row) {
      // Lane 4 g + t holds rows g and g + 8, columns 8 j + 2 t and the next.
      const int lane = row % 8 * 4 + column % 8 / 2;
      const int index = column / 8 * 4 + row / 8 * 2 + column % 2;
      float& d = own.values[product.d[lane]][index];
      float sum = product.add[lane] ? d : 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k];
      d = sum;
    }
  }
}

void Hopper::commit() {
  Products& own = products_[machine.lane().who.warp];
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}

void Hopper::finish(int pending) {
  Products& own = products_[machine.lane().who.warp];
  while (static_cast<int>(own.groups.size()) > pending) {
    for (const Product& product : own.groups.front()) {
      compute(product);
      operands(product, true);
    }
    own.groups.erase(own.groups.begin());
  }
  if (!own.groups.empty() || !own.open.empty()) return;
  for (const auto& [d, value] : own.values) {
    for (size_t i = 0; i < value.size(); ++i) {
      if (!std::isnan(d[i])) machine.fail("accumulators were written while a product was in flight");
      d[i] = value[i];
    }
  }
  own.values.clear();
  own.fenced = false;
}

void Hopper::thread_ends() {
  const Products& own = products_[machine.lane().who.warp];
  if (!own.groups.empty() || !own.open.empty()) machine.fail("the thread ends with a wgmma it has not waited for");
  stores_end();
}

}  // namespace emu
