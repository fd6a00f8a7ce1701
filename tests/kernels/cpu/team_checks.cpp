// Checks of csrc/cpu/base/team.h with threads of their own, for tests/kernels/cpu/test_team.py. argv[1]: the check.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "cpu/base/team.h"

using namespace resnet_fused::cpu;

namespace {

void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

// Every value of a loop needs two values of the loop before it, of another slot's share. Plain memory: the team alone
// orders the accesses.
struct Chain {
  static constexpr int64_t kValues = 97;
  std::vector<std::vector<int64_t>> values;
  std::vector<int> in_slot;
  Loops loops;

  Chain(int count, int slots) : values(count + 1, std::vector<int64_t>(kValues, 1)), in_slot(slots) {
    for (int i = 0; i < count; ++i) {
      if (i % 5 == 3) loops.push_back({0, nullptr});
      loops.push_back({kValues, [this, i](int64_t piece, int slot) {
                         ++in_slot[slot];  // nobody else has this slot now
                         const auto& from = values[i];
                         values[i + 1][piece] =
                             (from[kValues - 1 - piece] + from[(piece + 1) % kValues]) % 1000003 + piece;
                       }});
    }
  }
  bool equals(const Chain& other) const { return values == other.values; }
  int pieces() const {
    int all = 0;
    for (const int count : in_slot) all += count;
    return all;
  }
};

void run(const Loops& loops, int slots, int threads) {
  Team team(loops, slots);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&team, i] { team.work(i); });
  team.work(0);
  for (std::thread& other : others) other.join();
  team.rethrow();
}

void together() {
  Chain alone(200, 1);
  run(alone.loops, 1, 1);
  for (const int slots : {2, 3, 8}) {
    for (int round = 0; round < 5; ++round) {
      Chain chain(200, slots);
      run(chain.loops, slots, slots);
      expect(chain.equals(alone), "values");
      expect(chain.pieces() == 200 * Chain::kValues, "every piece once");
    }
  }
}

void absent() {  // one thread alone does the pieces of all slots
  Chain alone(20, 1), chain(20, 4);
  run(alone.loops, 1, 1);
  run(chain.loops, 4, 1);
  expect(chain.equals(alone), "values");
}

void late() {  // a thread arrives after the end
  Chain chain(20, 2);
  Team team(chain.loops, 2);
  team.work(0);
  team.work(1);
  expect(chain.in_slot[1] == 0, "nothing left");
}

void failure() {
  for (const int threads : {1, 4}) {
    std::atomic<int> after{0};
    Loops loops{{50,
                 [](int64_t piece, int) {
                   if (piece == 20) throw std::runtime_error("piece 20");
                 }},
                {50, [&](int64_t, int) { ++after; }}};
    std::string what;
    try {
      run(loops, 4, threads);
    } catch (const std::runtime_error& error) {
      what = error.what();
    }
    expect(what == "piece 20", "the caller gets the exception");
    expect(after == 0, "no later loop runs");
  }
}

void sleepers() {  // loops of one long piece: everybody else sleeps and is woken
  Loops loops;
  std::atomic<int> done{0};
  for (int i = 0; i < 30; ++i) {
    loops.push_back({1, [&](int64_t, int) {
                       std::this_thread::sleep_for(std::chrono::milliseconds(2));
                       ++done;
                     }});
  }
  run(loops, 4, 4);
  expect(done == 30, "all loops");
}

}  // namespace

int main(int, char** argv) {
  const std::string check = argv[1];
  if (check == "together")
    together();
  else if (check == "absent")
    absent();
  else if (check == "late")
    late();
  else if (check == "failure")
    failure();
  else if (check == "sleepers")
    sleepers();
  else
    return 2;
  std::puts("done");
}
