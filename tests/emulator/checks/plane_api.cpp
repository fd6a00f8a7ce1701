// The functions that tests/support/plane_emulated.py calls through ctypes: the plane convolution on the emulator, its
// lists and refusals.
#include "cuda/hopper/plane/plan.h"
#include "emulator/checks/conv_call.h"
#include "emulator/core/machine.h"

// Fills `to`, which has room for `room` integers, with the table. `size` receives the number of the table's integers.
EXPORTED const char* plane_table(const ConvCall* a, int gradient, int places, int* to, int64_t room, int64_t* size) {
  return guarded([&] {
    const std::vector<int> table = cuda::conv_plane_table(conv_of(*a), gradient, places);
    *size = static_cast<int64_t>(table.size());
    if (*size <= room) std::copy(table.begin(), table.end(), to);
  });
}

EXPORTED int64_t plane_groups(const ConvCall* a, int gradient, int places) {
  return cuda::conv_plane_groups(conv_of(*a), gradient, places);
}

EXPORTED const char* plane_refusal(const ConvCall* a, int gradient, int major, int minor) {
  static std::string why;
  why = cuda::plane_refusal({major, minor}, static_cast<DType>(a->dtype), conv_of(*a), gradient);
  return why.c_str();
}

EXPORTED int plane_shared() { return cuda::kPlaneShared; }

// Group, first image and first channel of every step of every rank. `to` has room for `room` integers. Returns the
// number of steps.
EXPORTED int plane_spots(const ConvCall* a, int gradient, int places, int cluster, int* to, int64_t room) {
  const cuda::PlaneSchedule schedule = cuda::plane_schedule({conv_of(*a), gradient != 0}, places, cluster);
  for (int step = 0; 3 * (step + 1) * cluster <= room; ++step) {
    for (int rank = 0; rank < cluster; ++rank) {
      const cuda::PlaneSpot spot = cuda::plane_spot(schedule, step, rank);
      for (int value : {spot.group, spot.image, spot.channel}) *to++ = value;
    }
  }
  return schedule.steps();
}

EXPORTED const char* conv_plane(const ConvCall* a, int gradient, int places, int cluster, int multiprocessors) {
  return guarded([&] {
    const Convolution conv = conv_of(*a);
    const std::vector<int> table = cuda::conv_plane_table(conv, gradient, places);
    emu::machine.configure(a->seed, int(a->policy));
    emu::machine.multiprocessors = multiprocessors;
    cuda::conv_plane(static_cast<DType>(a->dtype), a->x, a->weight, epilogue_of(*a), a->out, conv, gradient,
                     {table.data(), places}, cluster, nullptr);
  });
}
