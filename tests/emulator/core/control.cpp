// The functions of the loaded library that Python calls through ctypes: schedule, device size, and number formats.
#include "emulator/core/machine.h"
#include "emulator/core/numbers.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// policy -1: the policy is drawn for each block.
EXPORT void emu_configure(uint64_t seed, int policy, int multiprocessors) {
  emu::machine.configure(seed, policy);
  emu::machine.multiprocessors = multiprocessors;
}

// The last launch: numbers of blocks in x, y and z, threads of a block.
EXPORT void emu_last_launch(int64_t* to) {
  const emu::Dim& grid = emu::machine.grid;
  to[0] = grid.x, to[1] = grid.y, to[2] = grid.z, to[3] = emu::machine.threads;
}

EXPORT void emu_narrow(const float* x, uint16_t* f16, uint16_t* bf16, uint32_t* tf32, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    f16[i] = emu::narrow_f16(x[i]);
    bf16[i] = emu::narrow_bf16(x[i]);
    tf32[i] = emu::round_tf32(x[i]);
  }
}

EXPORT void emu_widen(const uint16_t* bits, float* f16, float* bf16, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    f16[i] = emu::widen_f16(bits[i]);
    bf16[i] = emu::widen_bf16(bits[i]);
  }
}
