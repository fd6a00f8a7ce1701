// The functions that tests/support/strip_emulated.py calls through ctypes: the strip convolution on the emulator, its
// plan and refusals.
#include "cuda/hopper/strip/plan.h"
#include "emulator/checks/conv_call.h"
#include "emulator/core/machine.h"

namespace resnet_fused::cuda {
void conv_strip_planned(const StripPlan&, DType, const void*, const void*, Epilogue, void*, Convolution, bool, void*);
}  // namespace resnet_fused::cuda

// lines: at most, of a segment. 0: as planned.
static cuda::StripPlan plan_of(const ConvCall& a, int lines) {
  cuda::StripPlan plan = cuda::strip_plan(conv_of(a));
  if (lines == 0) return plan;
  const int segments = static_cast<int>((a.h + lines - 1) / lines);
  plan.blocks = plan.blocks / plan.segments * segments;
  plan.segments = segments, plan.rows = lines;
  return plan;
}

// plan: strips side by side, segments, lines of a segment, blocks. places: for each block its first image, column and
// line, and its number of lines. `room`: integers that places can hold.
EXPORTED void strip_plan(const ConvCall* a, int lines, int64_t* plan, int* places, int64_t room) {
  const cuda::StripPlan p = plan_of(*a, lines);
  for (int64_t value : {int64_t{p.strips_w}, int64_t{p.segments}, int64_t{p.rows}, p.blocks}) *plan++ = value;
  for (int block = 0; 4 * (block + 1) <= room; ++block) {
    const cuda::StripPlace at = cuda::strip_place(p, block);
    for (int value : {at.image, at.column, at.row, at.rows}) *places++ = value;
  }
}

EXPORTED const char* strip_refusal(const ConvCall* a, int major, int minor) {
  static std::string why;
  why = cuda::strip_refusal({major, minor}, static_cast<DType>(a->dtype), conv_of(*a));
  return why.c_str();
}

EXPORTED int strip_shared() { return cuda::kStripShared; }

EXPORTED const char* conv_strip(const ConvCall* a, int gradient, int lines) {
  return guarded([&] {
    emu::machine.configure(a->seed, int(a->policy));
    cuda::conv_strip_planned(plan_of(*a, lines), static_cast<DType>(a->dtype), a->x, a->weight, epilogue_of(*a), a->out,
                             conv_of(*a), gradient, nullptr);
  });
}
