// The functions that tests/support/conv_emulated.py calls through ctypes: convolutions on the emulator, with a plan
// that the test chooses.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "cuda/conv/args.cuh"
#include "cuda/conv/choice.h"
#include "cuda/conv/pair_plan.h"
#include "cuda/conv/plan.h"
#include "cuda/conv/pool_plan.h"
#include "emulator/checks/conv_call.h"
#include "emulator/core/machine.h"

namespace resnet_fused::cuda {
void conv_bn_relu_planned(const ConvPlan&, DType, const ConvTensors&, Convolution, bool, bool, void*, void*);
void conv_stats_planned(const ConvPlan&, DType, const ConvTensors&, Convolution, float*, float*, MutableChannels,
                        MutableChannels, const int64_t*, double, double, bool, void*, void*);
void conv_bn_relu_pool_planned(const PoolPlan&, DType, const void*, const void*, Norm, void*, Convolution, bool, void*);
}  // namespace resnet_fused::cuda

struct ConvPlanned {
  int64_t tile, vector, images, tiles_m, tiles_n, steps, splits, steps_per_split, scratch, clocks;
};

static cuda::ConvPlan plan_of(const ConvCall& a) {
  const DType dtype = static_cast<DType>(a.dtype);
  const Convolution conv = conv_of(a);
  cuda::ConvPlan plan = cuda::conv_plan(dtype, conv, a.allow_tf32, a.aligned);
  if (a.tile >= 0 || a.splits > 0) {
    const auto tile = a.tile >= 0 ? static_cast<cuda::ConvTile>(a.tile) : plan.tile;
    plan = cuda::conv_plan_for(tile, dtype, conv, a.aligned, a.splits > 0 ? a.splits : 1);
  }
  if (a.cluster) plan.cluster = true, plan.scratch = 0;
  return plan;
}

// Memory of exactly the promised size, so that AddressSanitizer reports one byte more. It is filled with NaN, so that
// unwritten sums show.
using Scratch = std::unique_ptr<void, void (*)(void*)>;
static Scratch poisoned(size_t bytes) {
  void* memory = nullptr;  // aligned_alloc takes only multiples of the alignment
  if (posix_memalign(&memory, 256, bytes) != 0) throw std::bad_alloc();
  Scratch scratch(memory, std::free);
  std::memset(scratch.get(), 0xff, bytes);
  return scratch;
}

EXPORTED const char* conv_plan(const ConvCall* a, ConvPlanned* to) {
  return guarded([&] {
    const cuda::ConvPlan p = plan_of(*a);
    const Convolution conv = conv_of(*a);
    if (conv.p != a->p || conv.q != a->q) throw std::logic_error("the output of Convolution is not the caller's");
    const double clocks =
        cuda::conv_cost(cuda::shape_of(p.tile), cuda::conv_math(static_cast<DType>(a->dtype), a->allow_tf32),
                        p.images * conv.p * conv.q, conv.k, conv.groups, p.steps, p.splits);
    *to = {int64_t(p.tile), p.vector, p.images,          p.tiles_m,          p.tiles_n,
           p.steps,         p.splits, p.steps_per_split, int64_t(p.scratch), int64_t(clocks)};
    const size_t promised = cuda::conv_bn_relu_scratch(static_cast<DType>(a->dtype), conv_of(*a), a->allow_tf32, {});
    if (a->tile < 0 && a->splits == 0 && promised < p.scratch)
      throw std::logic_error("conv_bn_relu_scratch is too small");
  });
}

// The first row and the end of the rows that each block of a cluster finishes, of `live` rows.
EXPORTED void cluster_shares(int64_t live, int64_t size, int64_t* to) {
  for (int rank = 0; rank < size; ++rank) {
    const cuda::RowShare share = cuda::cluster_share(int(live), int(size), rank);
    to[2 * rank] = share.first, to[2 * rank + 1] = share.end;
  }
}

// The clusters worth measuring and their predicted clocks, the best prediction first.
EXPORTED const char* cluster_choices(const ConvCall* a, int64_t* tile, int64_t* splits, double* clocks,
                                     int64_t* count) {
  return guarded([&] {
    const DType dtype = static_cast<DType>(a->dtype);
    const Convolution conv = conv_of(*a);
    *count = 0;
    for (const ConvChoice& choice : cuda::conv_cluster_choices_of(dtype, conv, a->allow_tf32)) {
      const cuda::ConvPlan plan = cuda::conv_plan_chosen("conv_bn_relu", choice, dtype, conv, a->allow_tf32, true);
      if (!plan.cluster || plan.scratch != 0) throw std::logic_error("a cluster needs no scratch");
      tile[*count] = int64_t(plan.tile), splits[*count] = plan.splits;
      clocks[(*count)++] =
          cuda::conv_cluster_cost(cuda::shape_of(plan.tile), cuda::conv_math(dtype, a->allow_tf32),
                                  plan.images * conv.p * conv.q, conv.k, conv.groups, plan.steps, plan.splits);
    }
  });
}

struct PairPlanned {
  int64_t together, tile, splits;
  double clocks, clocks_apart;
};
EXPORTED const char* conv_pair_plan(const ConvCall* a, const ConvCall* b, PairPlanned* to) {
  return guarded([&] {
    const auto p =
        cuda::conv_pair_plan(static_cast<DType>(a->dtype), conv_of(*a), conv_of(*b), a->allow_tf32, a->aligned);
    *to = {p.together, int64_t(p.first.tile), p.first.splits, p.clocks, p.clocks_apart};
  });
}

EXPORTED const char* conv_bn_relu(const ConvCall* a) {
  return guarded([&] {
    cuda::ConvPlan plan = plan_of(*a);
    if (a->images > 0) plan.images = a->images;
    const Scratch scratch = poisoned(plan.scratch);
    emu::machine.configure(a->seed, int(a->policy));
    cuda::conv_bn_relu_planned(plan, static_cast<DType>(a->dtype), {a->x, a->weight, epilogue_of(*a), a->out},
                               conv_of(*a), a->allow_tf32, a->early_weights, scratch.get(), nullptr);
  });
}

// mean and var of the call are running statistics, which are updated. `mean` and `invstd` receive the batch's
// statistics.
EXPORTED const char* conv_stats(const ConvCall* a, float* mean, float* invstd, const int64_t* num_batches_tracked,
                                const double* momentum) {
  return guarded([&] {
    const DType dtype = static_cast<DType>(a->dtype), p = static_cast<DType>(a->param_dtype);
    const Convolution conv = conv_of(*a);
    cuda::ConvPlan plan = cuda::conv_plan(dtype, conv, a->allow_tf32, a->aligned, 1);
    size_t bytes = cuda::conv_stats_scratch(dtype, conv, a->allow_tf32, {});
    if (a->tile >= 0) {
      plan = cuda::conv_plan_for(static_cast<cuda::ConvTile>(a->tile), dtype, conv, a->aligned, 1);
      bytes = plan.tiles_m * 4 * conv.k * conv.groups * sizeof(float);
    }
    if (a->images > 0) {
      plan.images = a->images;
      plan.tiles_m = cuda::ceil_div(a->images * conv.p * conv.q, cuda::shape_of(plan.tile).m);
      bytes = conv.n * plan.tiles_m * 4 * conv.k * conv.groups * sizeof(float);
    }
    const Scratch scratch = poisoned(bytes);
    emu::machine.configure(a->seed, int(a->policy));
    cuda::conv_stats_planned(plan, dtype, {a->x, a->weight, {}, a->out}, conv, mean, invstd,
                             {const_cast<void*>(a->mean), p}, {const_cast<void*>(a->var), p}, num_batches_tracked,
                             *momentum, a->eps, a->allow_tf32, scratch.get(), nullptr);
  });
}

EXPORTED const char* conv_bn_relu_pool(const ConvCall* a) {
  return guarded([&] {
    const DType dtype = static_cast<DType>(a->dtype);
    cuda::PoolPlan plan = cuda::pool_plan(dtype, conv_of(*a));
    if (a->tile >= 0) plan = cuda::pool_plan_for(static_cast<cuda::PoolTile>(a->tile), dtype, conv_of(*a));
    if (a->splits > 0 && plan.blocks > a->splits) plan.blocks = a->splits;  // so that blocks walk over several tiles
    emu::machine.configure(a->seed, int(a->policy));
    cuda::conv_bn_relu_pool_planned(plan, dtype, a->x, a->weight, norm_of(*a), a->out, conv_of(*a), a->allow_tf32,
                                    nullptr);
  });
}
