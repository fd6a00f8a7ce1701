// The plane convolution for Hopper: an implicit matrix product whose rows are images. hopper/plane/plan.h: tiles,
// lists.
//
// x is a matrix [n, h * w * c]. One instruction of the copy engine copies the box of 64 images x 64 channels at column
// pixel * c + channel, for every stride and padding. One warp issues the copies. Each of two warpgroups multiplies and
// writes one half of the tile's pixels.
//
// Each of the two blocks of a cluster loads one half of every tap and sends it to both blocks. A tap's slot is
// therefore free only after the warps of both blocks have given it back. Planes are not shared.
#pragma once

#include "cuda/hopper/plane/store.cuh"
#include "ptx/cluster.cuh"
#include "ptx/hopper.cuh"

namespace resnet_fused::cuda {

constexpr int kPlaneConsumers = 8;  // warps, each of which gives every slot back
constexpr int kBothBlocks = 3;      // a bit for each block of a cluster

// Slots of shared memory and their barriers.
struct PlaneShared {
  uint32_t planes, taps, norms, barriers;

  static __device__ __forceinline__ PlaneShared at(uint32_t base) {
    const uint32_t planes = (base + 1023) / 1024 * 1024, taps = planes + kPlaneSlots * kPlaneBytes;
    const uint32_t norms = taps + kTapSlots * kTapBytes;
    return {planes, taps, norms, norms + 2 * kPlaneNormBytes};
  }
  __device__ __forceinline__ uint32_t plane(uint32_t slot) const { return planes + slot * kPlaneBytes; }
  __device__ __forceinline__ uint32_t tap(uint32_t slot) const { return taps + slot * kTapBytes; }
  __device__ __forceinline__ uint32_t plane_full(uint32_t slot) const { return barriers + 8 * slot; }
  __device__ __forceinline__ uint32_t plane_empty(uint32_t slot) const { return barriers + 8 * (kPlaneSlots + slot); }
  __device__ __forceinline__ uint32_t tap_full(uint32_t slot) const { return barriers + 8 * (2 * kPlaneSlots + slot); }
  __device__ __forceinline__ uint32_t tap_empty(uint32_t slot) const {
    return barriers + 8 * (2 * kPlaneSlots + kTapSlots + slot);
  }
};

// The n-th use of a ring of kSlots: its slot, and the phase of the slot's barriers.
template <int kSlots>
struct Turn {
  uint32_t slot;
  int parity;
  __device__ __forceinline__ explicit Turn(uint32_t n) : slot(n % kSlots), parity(n / kSlots & 1) {}
};
using PlaneTurn = Turn<kPlaneSlots>;
using TapTurn = Turn<kTapSlots>;

// The rank of this block in its cluster of kCluster blocks.
template <int kCluster>
__device__ __forceinline__ int plane_rank() {
  if constexpr (kCluster == 1) return 0;
  return ptx::cluster_rank();
}

// The loop of the copying thread. It asks for a tap's planes before it asks for the tap. When a warpgroup has waited
// for the tap's barrier, the slots of the tap's planes have then entered the phase that the warpgroup waits for next.
// In another order, a warpgroup that skips a plane (its pixels do not read it) could take an old phase of the slot for
// the new one. For the same reason a tap without weights follows a tile's residual, whose planes follow the input's
// planes through the ring.
template <int kCluster>
__device__ __forceinline__ void plane_copy(const ptx::TensorMap& x, const ptx::TensorMap& weight,
                                           const ptx::TensorMap& residual, const PlaneArgs& a,
                                           const PlaneShared& shared) {
  const int rank = plane_rank<kCluster>();
  uint32_t planes = 0, taps = 0;
  const auto free_tap = [&] {
    const TapTurn turn(taps++);
    ptx::mbar_wait(shared.tap_empty(turn.slot), turn.parity ^ 1);
    return turn.slot;
  };
  const auto free_plane = [&] {
    const PlaneTurn turn(planes++);
    ptx::mbar_wait(shared.plane_empty(turn.slot), turn.parity ^ 1);
    return turn.slot;
  };
  const auto plane = [&](const ptx::TensorMap& map, int column, int image) {
    const uint32_t slot = free_plane();
    ptx::mbar_arrive_expect(shared.plane_full(slot), kPlaneBytes);
    ptx::copy_2d(shared.plane(slot), map, column, image, shared.plane_full(slot));
  };
  for (int step = ptx::bid_x() / kCluster; step < a.schedule.steps(); step += ptx::grid_x() / kCluster) {
    const PlaneTile at(a, step, rank);
    const ptx::Words4 header = ptx::ld_global_nc<ptx::Words4>(at.header);
    const int* records = at.records + static_cast<int>(header.w[0]) * kRecordInts;
    for (int channel = 0; channel < a.c; channel += kPlaneChannels) {
      for (uint32_t r = 0; r < header.w[1]; ++r) {
        const ptx::Words4 head = ptx::ld_global_nc<ptx::Words4>(records + r * kRecordInts);
        const ptx::Words4 pixels = ptx::ld_global_nc<ptx::Words4>(records + r * kRecordInts + 4);
#pragma unroll
        for (uint32_t i = 0; i < kPlanePlaces; ++i) {
          if (i >= head.w[1]) break;
          plane(x, static_cast<int>(pixels.w[i]) * a.c + channel, at.image);
        }
        const uint32_t slot = free_tap();
        ptx::mbar_arrive_expect(shared.tap_full(slot), kTapBytes);
        const int column = static_cast<int>(head.w[0]) * a.c + channel;
        if constexpr (kCluster == 1) {
          ptx::copy_2d(shared.tap(slot), weight, column, at.first, shared.tap_full(slot));
        } else {  // the other block's half may arrive before this barrier expects it: its count then is negative
          ptx::copy_2d_multicast(shared.tap(slot) + rank * (kTapBytes / kCluster), weight, column,
                                 at.first + rank * (kPlaneColumns / kCluster), shared.tap_full(slot), kBothBlocks);
        }
      }
    }
    const int halves = plane_halves(a, at.first);
    for (uint32_t place = 0; place < kPlanePlaces; ++place) {
      const int pixel = ptx::ld_global_nc<int>(at.header + 2 + place);
      for (int i = 0; i < halves && pixel >= 0; ++i) {
        if (a.added) {
          plane(residual, pixel * a.k + at.first + i * kPlaneChannels, at.image);
        } else {  // an empty plane
          ptx::mbar_arrive(shared.plane_full(free_plane()));
        }
      }
    }
    ptx::mbar_arrive(shared.tap_full(free_tap()));  // a tap without weights
  }
}

// Planes of a result, from number `first` on. This warp fills `count` of them, or only gives them back.
struct PlaneResult {
  uint32_t first;
  int count;

  __device__ __forceinline__ void wait(const PlaneShared& shared) const {
    for (int i = 0; i < count; ++i) {
      const PlaneTurn turn(first + i);
      ptx::mbar_wait(shared.plane_full(turn.slot), turn.parity);
    }
  }
  __device__ __forceinline__ void give_back(const PlaneShared& shared) const {
    ptx::sync_warp();
    if (ptx::lane() != 0) return;
    for (int i = 0; i < count; ++i) ptx::mbar_arrive(shared.plane_empty(PlaneTurn(first + i).slot));
  }
};

// Slots whose products are in flight. They are given back after the products are done.
struct PlaneUsed {
  bool any = false;
  uint32_t tap = 0, planes = 0, count = 0;
  ptx::Words4 freed{};

  template <int kCluster>
  __device__ __forceinline__ void give_back(const PlaneShared& shared) const {
    if (!any || ptx::lane() != 0) return;
    ptx::mbar_arrive(shared.tap_empty(tap));
    if constexpr (kCluster > 1) {
      ptx::mbar_arrive_cluster(ptx::cluster_address(shared.tap_empty(tap), 1 - plane_rank<kCluster>()));
    }
#pragma unroll
    for (uint32_t i = 0; i < kPlanePlaces; ++i) {
      if (i < count) ptx::mbar_arrive(shared.plane_empty(PlaneTurn(planes + freed.w[i]).slot));
    }
  }
};

// Multiplies and stores the warpgroup's kPixels of every tile.
template <class T, int kPixels, int kCluster>
__device__ __forceinline__ void plane_multiply(const ptx::TensorMap& out, const PlaneArgs& a,
                                               const PlaneShared& shared) {
  const int group = ptx::shfl_idx(ptx::warp() / 4, 0) - 1, place = group * kPixels;  // shfl_idx: as below
  const uint32_t norm = shared.norms + group * kPlaneNormBytes;
  float sums[kPixels][kPlaneColumns / 2];
  uint32_t planes = 0, taps = 0;
  for (int step = ptx::bid_x() / kCluster; step < a.schedule.steps(); step += ptx::grid_x() / kCluster) {
    const PlaneTile at(a, step, plane_rank<kCluster>());
    ptx::bar_sync(1 + group, 128);  // the previous tile has been written, so its norms are free
    plane_norm(a, norm, at.first);
    const ptx::Words4 header = ptx::ld_global_nc<ptx::Words4>(at.header);
    const int* records = at.records + static_cast<int>(header.w[0]) * kRecordInts;
    const int loaded = ptx::ld_global_nc<int>(at.header + 6);
    bool multiplied[kPixels] = {};
    PlaneUsed before;
    for (int channel = 0; channel < a.c; channel += kPlaneChannels, planes += loaded) {
      for (uint32_t r = 0; r < header.w[1]; ++r) {
        const int* record = records + r * kRecordInts;
        PlaneUsed now;
        const TapTurn tap(taps++);
        now.any = true, now.tap = tap.slot, now.planes = planes;
        now.count = static_cast<uint32_t>(ptx::ld_global_nc<int>(record + 2));
        now.freed = ptx::ld_global_nc<ptx::Words4>(record + 12);
        ptx::mbar_wait(shared.tap_full(tap.slot), tap.parity);
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
          // shfl_idx tells ptxas that all lanes of a warp take the same branch; otherwise it serialises the products
          // (C7520). Both branches have a fence and a group for that reason too. wgmma_wait counts groups, so every tap
          // makes kPixels of them, also where a pixel does not read the tap.
          const int read = ptx::shfl_idx(ptx::ld_global_nc<int>(record + 8 + place + i), 0);
          if (read >= 0) {
            const PlaneTurn plane(planes + static_cast<uint32_t>(read));
            ptx::mbar_wait(shared.plane_full(plane.slot), plane.parity);
            ptx::wgmma_fence();
#pragma unroll
            for (int k = 0; k < kPlaneChannels / 16; ++k) {
              ptx::wgmma<T, kPlaneColumns>(sums[i], ptx::wgmma_descriptor(shared.plane(plane.slot) + 32 * k),
                                           ptx::wgmma_descriptor(shared.tap(tap.slot) + 32 * k),
                                           k > 0 || multiplied[i]);
            }
            multiplied[i] = true;
            ptx::wgmma_commit();
          } else {
            ptx::wgmma_fence();
            ptx::wgmma_commit();
          }
        }
        ptx::wgmma_wait<kPixels>();  // all products except those of this tap
        before.give_back<kCluster>(shared);
        before = now;
      }
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) ptx::wgmma_finish(sums[i]);
    before.give_back<kCluster>(shared);
    const TapTurn without_weights(taps++);  // the planes of the residual are in flight
    ptx::mbar_wait(shared.tap_full(without_weights.slot), without_weights.parity);
    ptx::sync_warp();
    PlaneUsed last;
    last.any = true, last.tap = without_weights.slot;
    last.give_back<kCluster>(shared);
    ptx::bar_sync(1 + group, 128);  // the norms of this tile have been written
    const int halves = plane_halves(a, at.first);
    const auto others = [&](int from) {  // gives back the other warpgroup's planes
      for (int i = from; i < from + kPixels; ++i) {
        if (ptx::ld_global_nc<int>(at.header + 2 + i) < 0) continue;
        const PlaneResult result{planes, halves};
        result.wait(shared);
        result.give_back(shared);
        planes += halves;
      }
    };
    if (group == 1) others(0);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = ptx::ld_global_nc<int>(at.header + 2 + place + i);
      if (pixel < 0) continue;
      const PlaneResult result{planes, halves};
      result.wait(shared);
      const uint32_t slots[2] = {shared.plane(PlaneTurn(planes).slot), shared.plane(PlaneTurn(planes + 1).slot)};
      plane_finish<T>(a, norm, halves, multiplied[i], sums[i], slots);
      ptx::fence_async();
      ptx::bar_sync(1 + group, 128);
      if (ptx::tid() % 128 == 0) {  // the copy engine leaves out images past the batch
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          if (part >= halves) break;
          ptx::store_2d(out, pixel * a.k + at.first + part * kPlaneChannels, at.image, slots[part]);
        }
        ptx::store_commit();
        ptx::store_wait_read();
      }
      result.give_back(shared);
      planes += halves;
    }
    if (group == 0) others(kPixels);
  }
}

template <class T, int kPixels, int kCluster>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    conv_plane_kernel(const __grid_constant__ ptx::TensorMap x, const __grid_constant__ ptx::TensorMap weight,
                      const __grid_constant__ ptx::TensorMap residual, const __grid_constant__ ptx::TensorMap out,
                      const PlaneArgs a) {
  const PlaneShared shared = PlaneShared::at(ptx::smem_base());
  if (ptx::tid() == 0) {
    for (uint32_t i = 0; i < kPlaneSlots; ++i) {
      ptx::mbar_init(shared.plane_full(i), 1);
      ptx::mbar_init(shared.plane_empty(i), kPlaneConsumers);
    }
    for (uint32_t i = 0; i < kTapSlots; ++i) {
      ptx::mbar_init(shared.tap_full(i), 1);
      ptx::mbar_init(shared.tap_empty(i), kPlaneConsumers * kCluster);
    }
    ptx::mbar_init_fence();
  }
  if constexpr (kCluster == 1) {
    ptx::sync_threads();
  } else {  // the other block has initialised its barriers too
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  if (ptx::warp() < 4) {
    ptx::registers_down<kPlaneCopyRegisters>();
    if (ptx::tid() == 0) plane_copy<kCluster>(x, weight, residual, a, shared);
  } else {
    ptx::registers_up<kPlaneProductRegisters>();
    plane_multiply<T, kPixels, kCluster>(out, a, shared);
  }
  if constexpr (kCluster > 1) {  // no block leaves while the other may still give back its slots
    ptx::sync_warp();
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

}  // namespace resnet_fused::cuda
