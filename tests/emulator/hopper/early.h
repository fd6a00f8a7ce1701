// Global memory under an early launch, with the weakest guarantees: until a thread's grid_wait the previous kernel may
// still write its results and read any memory.
//
// Kernels run one after the other here, so an early access would read right values. The record of what the last launch
// wrote reveals it instead. Memory must not have been reused since: a tensor that the host filled in the same place
// looks as if it were in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace emu {

class Early {
 public:
  void launch(bool early);             // a kernel begins
  bool now() const { return early_; }  // whether the present kernel was launched early
  // Raises Fault where the current thread must have waited and has not.
  void read(const char* what, const void* p, size_t bytes);
  void read_only(const void* p, size_t bytes);  // of memory that no thread writes while the kernel runs
  void write(const char* what, const void* p, size_t bytes);
  void wait();
  void trigger();

 private:
  using Ranges = std::vector<std::pair<uintptr_t, uintptr_t>>;  // [first, second)
  bool written_before(const void* p, size_t bytes) const;

  Ranges before_, written_;  // writes of the previous launch, sorted; writes of this launch
  bool early_ = false;
};

}  // namespace emu
