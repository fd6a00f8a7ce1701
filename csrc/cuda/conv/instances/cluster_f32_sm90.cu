#include "cuda/conv/cluster_launch.cuh"

namespace resnet_fused::cuda {
template void launch_conv_cluster<MathF32>(const ConvPlan&, const ConvArgs&, bool, void*);
}
