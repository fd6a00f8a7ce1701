// Loops that a team of threads runs one after another, so that no thread waits for a thread that the scheduler has put
// aside.
//
// A region of torch's pool per loop ends when every thread has arrived. Beside a busy process the last of them is
// often a time slice late, in each of a network's 60 loops. A team is one region for all loops. Its threads claim
// pieces, and a loop ends when its pieces are done, whoever did them. A thread that is put aside holds up no more than
// the piece it has claimed. Between pieces it offers its core, so that it is put aside with no piece in its hands.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

namespace resnet_fused::cpu {

// body(piece, slot) for every piece. The pieces run in any order, and in parallel. slot: the thread, below the number
// of slots; two bodies that run at the same time have different ones. A piece must not block.
struct Loop {
  int64_t pieces;
  std::function<void(int64_t piece, int slot)> body;
};
using Loops = std::vector<Loop>;

// Begin of part i where `count` things are divided into `parts` parts whose sizes differ by at most one.
inline int64_t part_begin(int64_t count, int64_t parts, int64_t i) {
  const int64_t longer = count % parts;
  return count / parts * i + (i < longer ? i : longer);
}

// A loop of body(begin, end) on ranges that cover [0, count): a few for each slot, so that a slot that is late costs
// one of them.
template <class Body>
Loop ranges(int64_t count, int slots, Body body) {
  constexpr int64_t kPerSlot = 4;
  const int64_t pieces = count < kPerSlot * slots ? count : kPerSlot * slots;
  return {pieces,
          [=](int64_t piece, int) { body(part_begin(count, pieces, piece), part_begin(count, pieces, piece + 1)); }};
}

class Team {
 public:
  // `loops` is kept by reference, and must live until the last work() has returned.
  Team(const Loops& loops, int slots);

  // What a thread of the team does: returns when all loops are done. After a body has thrown, the pieces that are left
  // are counted and not run. A thread may come late, or never; one thread alone does everything.
  void work(int slot);

  // Throws what a body threw. To be called after all work() have returned.
  void rethrow() const;

 private:
  static constexpr int kNoCore = -1;
  // The pieces that belong to one slot: the number of the loop above kPieceBits, and the next piece. A thread that
  // still looks at the previous loop cannot claim a piece of this one.
  struct alignas(64) Share {
    std::atomic<uint64_t> next{0};
    std::atomic<int> core{kNoCore};  // where the slot's thread was last seen
  };
  int64_t claim(uint32_t loop, int slot);
  int64_t claim_from(uint32_t loop, int owner);
  void begin(uint32_t loop);
  void wait_after(uint32_t loop, int slot);
  // Moves the calling thread to another core where it shares its core with another thread of the team. The scheduler
  // leaves two of them on one core beside a busy process on the other.
  void stand_alone(int slot);

  const Loops& loops_;
  const int slots_;
  const std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<int64_t> left_{0};  // pieces of the loop that are not done
  alignas(64) std::atomic<uint32_t> loop_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

}  // namespace resnet_fused::cpu
