// Host side of conv_plane. The caller makes the table (hopper/plane/plan.h) and keeps it in device memory.
#include "cuda/base/launch_together.h"
#include "cuda/base/tensor_map.h"
#include "cuda/hopper/plane/plane.cuh"

namespace resnet_fused::cuda {

template <class T, int kPixels>
static void launch_plane(const PlaneArgs& args, const ptx::TensorMap& x, const ptx::TensorMap& weight,
                         const ptx::TensorMap& residual, const ptx::TensorMap& out, void* stream) {
  // There is one block per multiprocessor. A GPC has an even number of multiprocessors, so pairs leave none without a
  // block.
  const int cluster = args.schedule.cluster;
  const int64_t clusters = std::max(1, std::min(multiprocessors("conv_plane") / cluster, args.schedule.steps()));
  const auto kernel = cluster == 1 ? conv_plane_kernel<T, kPixels, 1> : conv_plane_kernel<T, kPixels, 2>;
  require_registers("conv_plane", reinterpret_cast<const void*>(kernel), kPlaneRegisters);
  if (cluster == 1) {
    launch("conv_plane", kernel, {clusters}, kPlaneThreads, kPlaneShared, stream, x, weight, residual, out, args);
  } else {
    launch_together("conv_plane", kernel, 2 * clusters, 2, kPlaneThreads, kPlaneShared, stream, x, weight, residual,
                    out, args);
  }
}

std::vector<int> conv_plane_table(Convolution conv, bool gradient, int places) {
  return plane_table(plane_groups({conv, gradient}, places));
}

int64_t conv_plane_groups(Convolution conv, bool gradient, int places) {
  return plane_group_count({conv, gradient}, places);
}

std::string conv_plane_refusal(DType dtype, Convolution conv, bool gradient) {
  return plane_refusal(capability("conv_plane"), dtype, conv, gradient);
}

void conv_plane(DType dtype, const void* x, const void* weight, Epilogue epilogue, void* out, Convolution conv,
                bool gradient, PlaneTable table, int cluster, void* stream) {
  require_hopper("conv_plane");
  // Sizes of the input and the output. The gradient reads a map of the convolution's output and writes a map of its
  // input.
  const PlaneShape shape{conv, gradient};
  const int64_t c = gradient ? conv.k : conv.c, k = gradient ? conv.c : conv.k;
  const int64_t width = shape.read_rows() * shape.read_columns() * c, filter = conv.r * conv.s * c;
  PlaneArgs args{};
  args.table = table.data, args.schedule = plane_schedule(shape, table.places, cluster);
  args.c = static_cast<int>(c), args.k = static_cast<int>(k);
  args.norm = epilogue.norm, args.added = epilogue.residual != nullptr, args.activation = epilogue.activation;
  const auto x_map = matrix_map("conv_plane", {x, dtype, conv.n, width, 2 * width, kPlaneImages});
  const auto weight_map = matrix_map("conv_plane", {weight, dtype, k, filter, 2 * filter, kPlaneColumns / cluster});
  const int64_t written = shape.rows() * shape.columns() * k;
  const auto residual_map =
      args.added ? matrix_map("conv_plane", {epilogue.residual, dtype, conv.n, written, 2 * written, kPlaneImages})
                 : x_map;
  const auto out_map = matrix_map("conv_plane", {out, dtype, conv.n, written, 2 * written, kPlaneImages});
  const bool f16 = dtype == DType::f16;
  if (table.places == 4) {
    (f16 ? launch_plane<ptx::f16, 2> : launch_plane<ptx::bf16, 2>)(args, x_map, weight_map, residual_map, out_map,
                                                                   stream);
  } else {
    (f16 ? launch_plane<ptx::f16, 1> : launch_plane<ptx::bf16, 1>)(args, x_map, weight_map, residual_map, out_map,
                                                                   stream);
  }
}

}  // namespace resnet_fused::cuda
