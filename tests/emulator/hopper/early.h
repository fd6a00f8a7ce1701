// Global memory under an early launch, at its weakest: until a thread's grid_wait the kernel before may still be
// writing what it writes, and reading anything at all.
//
// Kernels run one after the other here, so that nothing would go wrong by itself: instead, what the last launch wrote
// is kept. Memory must not have changed hands since: a tensor that the host filled in the place of that one looks as if
// it were in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace emu {

class Early {
 public:
  void launch(bool early);             // a kernel begins
  bool now() const { return early_; }  // it was launched early
  // By the current thread: Fault if it has not waited and must have.
  void read(const char* what, const void* p, size_t bytes);
  void read_only(const void* p, size_t bytes);  // of memory that no one writes while the kernel runs
  void write(const char* what, const void* p, size_t bytes);
  void wait();
  void trigger();

 private:
  using Ranges = std::vector<std::pair<uintptr_t, uintptr_t>>;  // [first, second)
  bool written_before(const void* p, size_t bytes) const;

  Ranges before_, written_;  // by the launch before, in order; by this one
  bool early_ = false;
};

}  // namespace emu
