// The instructions of csrc/ptx/ptx.cuh on the emulated machine. ptx.cuh includes this file under -DHOST_EMULATION.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "emulator/core/machine.h"
#include "emulator/core/mma.h"
#include "emulator/core/numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace resnet_fused::ptx {

using emu::machine;

inline int tid() { return machine.block_warp() * 32 + machine.lane().who.lane; }
inline int threads() { return machine.threads; }
inline int lane() { return machine.lane().who.lane; }
inline int warp() { return machine.block_warp(); }
inline int bid_x() { return static_cast<int>(machine.block_index().x); }
inline int bid_x_again() { return bid_x(); }
inline int bid_y() { return static_cast<int>(machine.block_index().y); }
inline int bid_z() { return static_cast<int>(machine.block_index().z); }
inline int grid_x() { return static_cast<int>(machine.grid.x); }
inline int grid_y() { return static_cast<int>(machine.grid.y); }
inline int grid_z() { return static_cast<int>(machine.grid.z); }

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  To to;
  std::memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

// Shared memory.

inline uint32_t smem_base() { return machine.shadow.base(); }

template <class T>
T ld_shared(uint32_t addr) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "ld_shared: 2, 4, 8, 16 bytes");
  machine.shadow.read("ld.shared", addr, sizeof(T), machine.lane().who);
  T value;
  std::memcpy(&value, machine.shadow.at("ld.shared", addr, sizeof(T), machine.lane().who), sizeof(T));
  return value;
}
template <class T>
void st_shared(uint32_t addr, T value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "st_shared: 2, 4, 8, 16 bytes");
  machine.shadow.write("st.shared", addr, sizeof(T), machine.lane().who);
  std::memcpy(machine.shadow.at("st.shared", addr, sizeof(T), machine.lane().who), &value, sizeof(T));
}

inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) { emu::ldmatrix<4, false>("ldmatrix.x4", r, addr); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr) { emu::ldmatrix<4, true>("ldmatrix.x4.trans", r, addr); }
inline void ldmatrix_x2(uint32_t (&r)[2], uint32_t addr) { emu::ldmatrix<2, false>("ldmatrix.x2", r, addr); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t addr) { emu::ldmatrix<2, true>("ldmatrix.x2.trans", r, addr); }

// Global memory: alignment is checked here, bounds by AddressSanitizer in the sanitized build.

inline void check_global(const char* what, const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    machine.fail(std::string(what) + " of " + std::to_string(bytes) + " bytes at a misaligned address");
  }
}
template <class T>
T ld_global(const void* p) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "ld_global: 2, 4, 8, 16 bytes");
  check_global("ld.global", p, sizeof(T));
  machine.early.read("ld.global", p, sizeof(T));
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <class T>
T ld_global_nc(const void* p) {
  machine.early.read_only(p, sizeof(T));
  return ld_global<T>(p);
}
template <class T>
T ld_global_stream(const void* p) {
  return ld_global<T>(p);
}
template <class T>
void st_global(void* p, T value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "st_global: 2, 4, 8, 16 bytes");
  check_global("st.global", p, sizeof(T));
  machine.early.write("st.global", p, sizeof(T));
  std::memcpy(p, &value, sizeof(T));
}
template <class T>
void st_global_stream(void* p, T value) {
  st_global(p, value);
}

// cp.async: the destination is poison from issue until the issuing thread waits for the copy's group.

inline void copy(const char* what, uint32_t dst, const void* src, int bytes, int src_bytes) {
  if (src_bytes < 0 || src_bytes > bytes)
    machine.fail(std::string(what) + ": source size " + std::to_string(src_bytes));
  check_global(what, src, bytes);
  if (src_bytes > 0) machine.early.read(what, src, src_bytes);
  emu::Copy c{dst, bytes, {}};
  // read at issue, so that AddressSanitizer reports the instruction and not the wait
  std::memcpy(c.data, src, src_bytes);
  machine.shadow.copy_issued(what, dst, bytes, machine.lane().who);
  machine.lane().open.push_back(c);
}
inline void cp_async16(uint32_t dst, const void* src, int src_bytes) { copy("cp.async", dst, src, 16, src_bytes); }
template <int Bytes>
void cp_async(uint32_t dst, const void* src, int src_bytes) {
  static_assert(Bytes == 4 || Bytes == 8, "cp_async: 4 or 8 bytes, 16 are cp_async16");
  copy("cp.async", dst, src, Bytes, src_bytes);
}
inline void cp_async_commit() {
  emu::Lane& lane = machine.lane();
  lane.groups.push_back(std::move(lane.open));
  lane.open.clear();
}
template <int Pending>
void cp_async_wait() {
  emu::Lane& lane = machine.lane();
  while (lane.groups.size() > Pending) {
    for (const emu::Copy& c : lane.groups.front()) {
      machine.shadow.copy_landed("cp.async", c.dst, c.bytes, lane.who);
      std::memcpy(machine.shadow.at("cp.async", c.dst, c.bytes, lane.who), c.data, c.bytes);
    }
    lane.groups.erase(lane.groups.begin());
  }
}

// Barriers: whole warps arrive together, as in a warp-wide instruction.

struct BarrierOperands {
  int id, threads;
};
inline void barrier(const char* name, int id, int threads, bool wait) {
  BarrierOperands mine{id, threads};
  if (machine.meet(name, &mine)) {
    for (void* p : machine.warp().operands) {
      const auto* other = static_cast<const BarrierOperands*>(p);
      if (other->id != id || other->threads != threads) {
        machine.fail(std::string(name) + ": the lanes of the warp name different barriers or counts");
      }
    }
    machine.arrive(id, threads, wait);
  }
  machine.pause();
}
inline void sync_threads() { barrier("sync_threads", 0, machine.threads, true); }
inline void bar_sync(int id, int threads) { barrier("bar.sync", id, threads, true); }
inline void bar_arrive(int id, int threads) { barrier("bar.arrive", id, threads, false); }
inline void sync_warp() {
  int nothing = 0;
  emu::collective("sync_warp", nothing, [](int* const(&)[32]) { machine.shadow.publish(machine.lane().who.warp); });
}

// Shuffles do not order memory, as in CUDA.

struct Shuffle {
  uint32_t value;
  int operand;
  uint32_t result;
};
template <class T, class Source>
T shuffle(const char* name, T value, int operand, Source source) {
  Shuffle mine{bit_cast<uint32_t>(value), operand, 0};
  emu::collective(name, mine, [source](Shuffle* const(&all)[32]) {
    for (int l = 0; l < 32; ++l) all[l]->result = all[source(l, all[l]->operand)]->value;
  });
  return bit_cast<T>(mine.result);
}
template <class T>
T shfl_xor(T value, int mask) {
  return shuffle("shfl.xor", value, mask, [](int l, int m) { return (l ^ m) & 31; });
}
template <class T>
T shfl_down(T value, int delta) {
  return shuffle("shfl.down", value, delta, [](int l, int d) { return l + d > 31 ? l : l + d; });
}
template <class T>
T shfl_idx(T value, int from) {
  return shuffle("shfl.idx", value, from, [](int, int i) { return i & 31; });
}

// Tensor cores.

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu::mma<is_f16<T> ? emu::Mma::f16 : emu::Mma::bf16>(d, a, b);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu::mma<emu::Mma::tf32>(d, a, b);
}

// Numbers.

inline float to_float(float v) { return v; }
inline float to_float(f16 v) { return emu::widen_f16(v.bits); }
inline float to_float(bf16 v) { return emu::widen_bf16(v.bits); }
template <class T>
T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (is_f16<T>) {
    return T{emu::narrow_f16(x)};
  } else {
    return T{emu::narrow_bf16(x)};
  }
}
template <class T>
uint32_t pack(float lo, float hi) {
  return from_float<T>(lo).bits | static_cast<uint32_t>(from_float<T>(hi).bits) << 16;
}
template <class T>
void unpack(uint32_t word, float& lo, float& hi) {
  lo = to_float(T{static_cast<uint16_t>(word & 0xffff)});
  hi = to_float(T{static_cast<uint16_t>(word >> 16)});
}
inline uint32_t to_tf32(float x) { return emu::round_tf32(x); }

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float add(float a, float b) { return a + b; }
inline float mul(float a, float b) { return a * b; }
inline float div(float a, float b) { return a / b; }
inline float sqrt(float a) { return std::sqrt(a); }

}  // namespace resnet_fused::ptx
