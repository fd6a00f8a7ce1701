// Large pages for memory that every call reads from end to end.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace resnet_fused::cpu {

// Asks the system for large pages. The caller asks before it first writes to the memory. Only the speed depends on it.
inline void prefer_large_pages(void* memory, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kLarge = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kLarge - 1) / kLarge * kLarge, end = (begin + bytes) / kLarge * kLarge;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace resnet_fused::cpu
