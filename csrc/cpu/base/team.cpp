#include "cpu/base/team.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <chrono>
#include <thread>

namespace resnet_fused::cpu {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// A thread without a piece spins this long before it sleeps. Loops that end together end within it. A sleeping thread
// leaves its core to a thread of the team that waits for a core.
constexpr microseconds kSpin{200};
// A thread offers its core after this long. It is less than most time slices (1 to 4 ms), so a thread is rarely put
// aside in the middle of a piece. Without another process the offer costs a system call. With 200 us Linux 6.18 gave
// the neighbour most of the core: ResNet-34 took 32 ms instead of 25 (Zen 4, two cores).
constexpr microseconds kOffer{1000};

constexpr int kPieceBits = 32;
constexpr uint64_t kPieceMask = (uint64_t{1} << kPieceBits) - 1;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Team::Team(const Loops& loops, int slots) : loops_(loops), slots_(slots), shares_(new Share[slots]) { begin(0); }

void Team::begin(uint32_t loop) {
  while (loop < loops_.size() && loops_[loop].pieces == 0) ++loop;
  if (loop < loops_.size()) {
    const int64_t pieces = loops_[loop].pieces;
    left_.store(pieces, std::memory_order_relaxed);
    for (int slot = 0; slot < slots_; ++slot) {
      const auto first = static_cast<uint64_t>(part_begin(pieces, slots_, slot));
      shares_[slot].next.store(uint64_t{loop} << kPieceBits | first, std::memory_order_relaxed);
    }
  }
  loop_.store(loop);  // in one order with sleepers_: a thread sleeps with this number seen, or is woken
  if (sleepers_.load() > 0) loop_.notify_all();
}

int64_t Team::claim_from(uint32_t loop, int owner) {
  std::atomic<uint64_t>& share = shares_[owner].next;
  const int64_t end = part_begin(loops_[loop].pieces, slots_, owner + 1);
  uint64_t next = share.load(std::memory_order_relaxed);
  while (next >> kPieceBits == loop && static_cast<int64_t>(next & kPieceMask) < end) {
    if (share.compare_exchange_weak(next, next + 1, std::memory_order_relaxed)) {
      return static_cast<int64_t>(next & kPieceMask);
    }
  }
  return -1;
}

// A thread begins with its own share, the same part of the map in every loop, which its cache may hold.
int64_t Team::claim(uint32_t loop, int slot) {
  for (int i = 0; i < slots_; ++i) {
    const int64_t piece = claim_from(loop, (slot + i) % slots_);
    if (piece >= 0) return piece;
  }
  return -1;
}

void Team::wait_after(uint32_t loop, int slot) {
  const auto until = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (loop_.load(std::memory_order_acquire) != loop) return;
      pause();
    }
  } while (Clock::now() < until);
  shares_[slot].core.store(kNoCore, std::memory_order_relaxed);
  sleepers_.fetch_add(1);
  while (loop_.load() == loop) loop_.wait(loop);
  sleepers_.fetch_sub(1);
  stand_alone(slot);
}

void Team::work(int slot) {
  auto offered = Clock::now();
  stand_alone(slot);
  for (;;) {
    const uint32_t loop = loop_.load(std::memory_order_acquire);
    if (loop >= loops_.size()) break;
    const int64_t piece = claim(loop, slot);
    if (piece < 0) {
      wait_after(loop, slot);
      continue;
    }
    try {
      // After a failure the pieces are only counted, so that everybody leaves by the same way.
      if (!failed_.load(std::memory_order_relaxed)) loops_[loop].body(piece, slot);
    } catch (...) {
      if (!failed_.exchange(true)) failure_ = std::current_exception();
    }
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) begin(loop + 1);
    if (const auto now = Clock::now(); now - offered > kOffer) {
      stand_alone(slot);
      std::this_thread::yield();
      offered = Clock::now();
    }
  }
  shares_[slot].core.store(kNoCore, std::memory_order_relaxed);
}

void Team::stand_alone([[maybe_unused]] int slot) {
#ifdef __linux__
  const int core = sched_getcpu();
  shares_[slot].core.store(core, std::memory_order_relaxed);
  bool shared = false;
  for (int i = 0; i < slots_; ++i) shared |= i != slot && shares_[i].core.load(std::memory_order_relaxed) == core;
  cpu_set_t allowed;
  if (!shared || core < 0 || sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  if (CPU_COUNT(&allowed) < slots_ || !CPU_ISSET(core, &allowed)) return;
  cpu_set_t others = allowed;
  CPU_CLR(core, &others);
  if (sched_setaffinity(0, sizeof(others), &others) != 0) return;
  sched_setaffinity(0, sizeof(allowed), &allowed);
  shares_[slot].core.store(sched_getcpu(), std::memory_order_relaxed);
#endif
}

void Team::rethrow() const {
  if (failure_) std::rethrow_exception(failure_);
}

}  // namespace resnet_fused::cpu
