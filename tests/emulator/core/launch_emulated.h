// launch() of csrc/cuda/base/launch.h on the emulator. It runs the whole grid on this thread and then returns.
#pragma once

#include <string>
#include <tuple>
#include <utility>

#include "emulator/core/machine.h"

namespace resnet_fused::cuda {

inline int multiprocessors(const char*) { return emu::machine.multiprocessors; }

template <class... Params, class... Args>
void launch_as(emu::How how, const char* op, void (*kernel)(Params...), Grid grid, int block, size_t shared_bytes,
               Args&&... args) {
  using Call = std::pair<void (*)(Params...), std::tuple<Params...>>;
  const Call call(kernel, std::tuple<Params...>(std::forward<Args>(args)...));
  emu::machine.run(
      op, emu::Dim{grid.x, grid.y, grid.z}, block, shared_bytes,
      [](const void* context) {
        const Call& c = *static_cast<const Call*>(context);
        std::apply(c.first, c.second);
      },
      &call, how);
}

template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), Grid grid, int block, size_t shared_bytes, void*,
            Args&&... args) {
  launch_as({}, op, kernel, grid, block, shared_bytes, std::forward<Args>(args)...);
}
template <class... Params, class... Args>
void launch_clusters(const char* op, void (*kernel)(Params...), Grid grid, Grid cluster, int block, size_t shared_bytes,
                     void*, Args&&... args) {
  launch_as({{cluster.x, cluster.y, cluster.z}, true}, op, kernel, grid, block, shared_bytes,
            std::forward<Args>(args)...);
}

}  // namespace resnet_fused::cuda
