#include "emulator/core/machine.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <numeric>

#ifndef EMU_UCONTEXT
// rdi: where to save the stack pointer of the present fiber. rsi: the stack pointer of the next fiber.
asm(R"(
.text
.globl resnet_fused_emu_switch
.hidden resnet_fused_emu_switch
.type resnet_fused_emu_switch, @function
resnet_fused_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size resnet_fused_emu_switch, .-resnet_fused_emu_switch
)");
#endif

namespace emu {

Machine machine;

void Machine::configure(uint64_t seed, int policy) {
  seed_ = seed;
  wanted_policy_ = policy;
  launches_ = 0;
}

void Machine::run(const std::string& op, Dim dims, int block, size_t shared_bytes, void (*body)(const void*),
                  const void* context, How how) {
  const std::lock_guard<std::mutex> lock(one_at_a_time_);
  const uint64_t launch = launches_++;
  random_.state = seed_ * 0x2545f4914f6cdd1du + launch;
  if (block <= 0 || block > 1024 || block % 32 != 0) throw Fault(op + ": a block of " + std::to_string(block));
  if (dims.x < 1 || dims.y < 1 || dims.z < 1 || dims.x > 0x7fffffff || dims.y > 65535 || dims.z > 65535) {
    throw Fault(op + ": a grid of " + std::to_string(dims.x) + " x " + std::to_string(dims.y) + " x " +
                std::to_string(dims.z));
  }
  if (shared_bytes > 227 * 1024) throw Fault(op + ": " + std::to_string(shared_bytes) + " bytes of shared memory");
  const Dim cluster = how.cluster;
  const int64_t size = cluster.x * cluster.y * cluster.z;
  if (size < 1 || size > 8 || dims.x % cluster.x != 0 || dims.y % cluster.y != 0 || dims.z % cluster.z != 0) {
    throw Fault(op + ": clusters of " + std::to_string(size) + " blocks, which the grid is not made of");
  }
  if (size * block > 1024) throw Fault(op + ": the emulator has room for clusters of 1024 threads");
  grid = dims;
  threads = block;
  blocks = static_cast<int>(size);
  block_warps_ = block / 32;
  body_ = body;
  context_ = context;
  early.launch(how.early);
  hopper.launch();
  std::vector<int64_t> order(dims.x * dims.y * dims.z / size);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_.below(static_cast<uint32_t>(i))]);
  for (int64_t number : order) {
    place(cluster, number);
    policy_ = wanted_policy_ >= 0 ? wanted_policy_ : static_cast<int>(random_.below(2));
    // The base has exactly the promised alignment and no larger one.
    shadow.reset(1024 + 128 * (2 * random_.below(8) + 1), shared_bytes, block_warps_, blocks);
    run_cluster();
    if (faulted_) {
      const Dim& first = block_indices_[0];
      throw Fault(op + ": " + fault_ + " [block " + std::to_string(first.x) + "," + std::to_string(first.y) + "," +
                  std::to_string(first.z) + ", seed " + std::to_string(seed_) + ", policy " + std::to_string(policy_) +
                  ", launch " + std::to_string(launch) + "]");
    }
  }
}

void Machine::place(Dim cluster, int64_t number) {
  const int64_t x = grid.x / cluster.x, y = grid.y / cluster.y;
  const Dim first{number % x * cluster.x, number / x % y * cluster.y, number / x / y * cluster.z};
  block_indices_.clear();
  for (int64_t i = 0; i < blocks; ++i) {
    block_indices_.push_back(
        {first.x + i % cluster.x, first.y + i / cluster.x % cluster.y, first.z + i / cluster.x / cluster.y});
  }
}

void Machine::run_cluster() {
  for (int rank = 0; rank < blocks; ++rank) {
    for (Barrier& b : barriers_[rank]) b = Barrier{};
  }
  cluster_barrier_ = ClusterBarrier{};
  ready_warps_ = 0;
  sleepers_ = 0;
  hopper.reset();
  faulted_ = false;
  running_ = blocks * threads;
  warps_running_ = running_ / 32;
  for (int& left : left_) left = threads;
  for (int w = 0; w < warps_running_; ++w) {
    warps_[w] = Warp{};
    warps_[w].alive = kFullWarp;
    warps_[w].priority = random_.next();
    wake(w);
  }
  for (int t = 0; t < running_; ++t) {
    lanes_[t].who = Who{t / 32, t % 32};
    lanes_[t].waited = !early.now();
    lanes_[t].groups.clear();
    lanes_[t].open.clear();
    lanes_[t].fiber.start(&Machine::entry);
  }
  while (running_ > 0 && !faulted_) {
    // A bulk copy lands at a random time, at the latest when nothing else can happen.
    if (hopper.copies_in_flight() && random_.below(16) == 0) hopper.land_one();
    while (hopper.copies_in_flight() && ready_warps_ == 0) hopper.land_one();
    if (ready_warps_ == 0) {
      fault_ = standstill();
      faulted_ = true;
      return;
    }
    current_ = &next();
    current_->fiber.resume();
  }
}

static int nth_bit(uint32_t bits, uint32_t n) {
  for (; n > 0; --n) bits &= bits - 1;
  return __builtin_ctz(bits);
}

Lane& Machine::next() {
  int chosen;
  if (policy_ == 0) {
    chosen = nth_bit(ready_warps_, random_.below(__builtin_popcount(ready_warps_)));
  } else {
    if (random_.below(64) == 0) {
      for (int w = 0; w < warps_running_; ++w) warps_[w].priority = random_.next();
    }
    chosen = __builtin_ctz(ready_warps_);
    for (uint32_t left = ready_warps_; left != 0; left &= left - 1) {
      const int w = __builtin_ctz(left);
      if (warps_[w].priority > warps_[chosen].priority) chosen = w;
    }
  }
  Warp& warp = warps_[chosen];
  const int lane = nth_bit(warp.ready, random_.below(__builtin_popcount(warp.ready)));
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) ready_warps_ &= ~(1u << chosen);
  return lanes_[chosen * 32 + lane];
}

void Machine::wake(int warp) {
  warps_[warp].ready = kFullWarp;
  warps_[warp].met = 0;
  warps_[warp].meeting = nullptr;
  ready_warps_ |= 1u << warp;
}

void Machine::pause() { Fiber::pause(); }

void Machine::sleep(const char* what) {
  ++sleepers_;
  sleep_in_ = what;
  Fiber::pause();
}

void Machine::wake_lane(Who who) {
  --sleepers_;
  warps_[who.warp].ready |= 1u << who.lane;
  ready_warps_ |= 1u << who.warp;
}

bool Machine::meet(const char* name, void* operand) {
  Warp& warp = this->warp();
  if (warp.alive != kFullWarp) fail(std::string(name) + " after a lane of the warp has left the kernel");
  if (warp.met == 0) {
    warp.meeting = name;
  } else if (std::strcmp(warp.meeting, name) != 0) {
    fail(std::string("the warp diverges: ") + name + " here, other lanes wait in " + warp.meeting);
  }
  warp.operands[current_->who.lane] = operand;
  warp.met |= 1u << current_->who.lane;
  return warp.met == kFullWarp;
}

void Machine::arrive(int id, int expected, bool wait) {
  const int w = current_->who.warp;
  if (id < 0 || id > 15) fail("barrier " + std::to_string(id) + ": there are 16");
  if (expected <= 0 || expected % 32 != 0 || expected > threads) {
    fail("barrier " + std::to_string(id) + " of " + std::to_string(expected) + " threads");
  }
  Barrier& barrier = barriers_[rank()][id];
  if (barrier.arrived == 0) barrier.expected = expected;
  if (barrier.expected != expected) {
    fail("barrier " + std::to_string(id) + ": " + std::to_string(expected) + " threads here, " +
         std::to_string(barrier.expected) + " for the others");
  }
  barrier.arrived += 32;
  barrier.clocks.join(shadow.publish(w));
  if (wait) {
    barrier.waiting |= 1u << w;  // the warp stays in its meeting, so that a report of a standstill names it
  } else {
    wake(w);
  }
  if (barrier.arrived < expected) return;
  for (uint32_t left = barrier.waiting; left != 0; left &= left - 1) {
    const int waiter = __builtin_ctz(left);
    shadow.acquire(waiter, barrier.clocks);
    wake(waiter);
  }
  barrier = Barrier{};
}

void Machine::fail(const std::string& why) {
  throw Fault(why + " (warp " + std::to_string(current_->who.warp) + " lane " + std::to_string(current_->who.lane) +
              ")");
}

void Machine::thread_ends() {
  Lane& lane = *current_;
  Warp& warp = this->warp();
  bool in_flight = !lane.open.empty();
  for (const auto& group : lane.groups) in_flight |= !group.empty();  // the last groups of a pipeline are empty
  if (in_flight) fail("the thread ends with a cp.async it has not waited for");
  hopper.thread_ends();
  if (!lane.waited) fail("the thread ends without grid_wait, although its kernel was launched early");
  if (warp.met != 0) fail(std::string("the thread ends while other lanes of its warp wait in ") + warp.meeting);
  warp.alive &= ~(1u << lane.who.lane);
  --running_;
  if (warp.alive == 0) {
    const uint32_t bit = 1u << lane.who.warp;
    if ((cluster_barrier_.arrived | cluster_barrier_.passed) & bit)
      fail("the warp ends between cluster_arrive and cluster_wait");
    shadow.warp_leaves(lane.who.warp);
    pass_cluster_barrier();  // the barrier does not wait for a warp that has ended
  }
  if (--left_[rank()] == 0) {
    shadow.block_leaves(rank());
    hopper.block_leaves(rank());
  }
}

std::string Machine::standstill() const {
  std::map<std::string, int> count;
  for (int w = 0; w < warps_running_; ++w) {
    const int met = __builtin_popcount(warps_[w].met), alive = __builtin_popcount(warps_[w].alive);
    if (met > 0) count[std::string("wait in ") + warps_[w].meeting] += met;
    if (alive < 32) count["have ended"] += 32 - alive;
  }
  if (sleepers_ > 0) count[std::string("wait in ") + sleep_in_] += sleepers_;
  std::string text = "deadlock:";
  for (const auto& [state, n] : count) text += " " + std::to_string(n) + " threads " + state + ";";
  text.pop_back();
  return text;
}

void Machine::entry() {
  Machine& m = machine;
  try {
    m.body_(m.context_);
    m.thread_ends();
  } catch (const std::exception& error) {
    m.fault_ = error.what();
    m.faulted_ = true;
  }
  Fiber::leave();
}

}  // namespace emu
